"""results.json of others: what it claims is as the docs say, or it is refused with the key; predictions.npz too."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from everclip import load_runs
from everclip.cli.app import main
from everclip.errors import UserError
from everclip.runs.predictions import predictions
from everclip.runs.read import read_run
from everclip.runs.schema import MOST_CLASSES, load
from everclip.system.arrays import Shape, read_columns
from everclip.system.reading import Unreadable
from tests.compare.folders import run_folder
from tests.report.synthetic import write_run


def columns(most: int) -> dict[str, Shape]:
    """Return what predictions of so many images may be."""
    return {"id": Shape("iu", (most,)), "label": Shape("i", (most,)), "top": Shape("i", (most, 100))}


WRONG: list[tuple[str, object]] = [
    ("schema", 2),
    ("last", 1e308),
    ("last", float("nan")),
    ("average", -0.5),
    ("average", "0.5"),
    ("zero_shot", True),
    ("forgetting", 3),
    ("tasks", "x"),
    ("tasks", []),
    ("tasks", ["a", "b", "c"]),
    ("accuracy_after_stage", [0.5, 1e308]),
    ("accuracy_after_stage", [0.5]),
    ("zero_shot_after_stage", [None]),
    ("matrix", [[0.5, None]]),
    ("matrix", [[0.5, None, 0.1], [0.5, 0.5]]),
    ("matrix", 7),
    ("test_counts", [1, -1]),
    ("test_counts", [10**400, 1]),
    ("per_class", [{"class": "a"}]),
    ("per_class", [{"class": "a", "task": 9, "n": 1, "zero_shot": 0, "after_learning": 0, "last": 0}]),
    ("per_class", [{"class": "a", "task": 0, "n": 1, "zero_shot": None, "after_learning": None, "last": 0}]),
    ("class_labels", [0]),
    ("memory_budget", "many"),
    ("memory_bytes", -1),
    ("seconds", 1e300),
    ("seed", 1.5),
    ("forked_from", {"run": 5}),
    ("skipped_images", [5]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", tasks=2, per_task=2, steps=2, answers=True)
    return tmp_path / "run"


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key} {value!s:.30}" for key, value in WRONG])
def test_each_key_is_as_the_docs_say(folder: Path, key: str, value: object) -> None:
    rewrite(folder, **{key: value})
    with pytest.raises(Unreadable, match=f'"{key}"'):
        load(folder / "results.json")


def test_one_bad_run_does_not_break_the_page_of_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write_run(tmp_path / f"s{seed}", tasks=2, per_task=2, steps=2, seed=seed)
    rewrite(tmp_path / "s1", last=1e308)
    os.mkfifo(tmp_path / "s2" / "results.json.pipe")
    os.replace(tmp_path / "s2" / "results.json.pipe", tmp_path / "s2" / "results.json")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().err
    page = (tmp_path / "page.html").read_text()
    for name, why in (("s1", '(its "last" is not what docs/results.md says)'), ("s2", "(it is a pipe)")):
        line = f"{tmp_path / name / 'results.json'} cannot be read as results {why}"
        assert f"left out: {line}" in said
        assert line.replace('"', "&#34;") in page


def test_a_comparison_names_the_run_and_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "a", 0.5)
    run_folder(tmp_path / "b", 1e308, average=0.5, seed=1)
    assert main(["compare", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f'{tmp_path}/b/results.json cannot be read as results (its "last" is' in err
    with pytest.raises(UserError, match='its "last"'):
        load_runs(tmp_path)


def test_a_config_with_a_date_and_one_that_is_no_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", 0.5)
    (folder / "config.toml").write_text("seed = 2026-01-31\nat = 10:00:00\n")
    assert load_runs(folder)[0]["at"] == "10:00:00"
    (folder / "config.toml").unlink()
    (folder / "config.toml").mkdir()
    with pytest.raises(UserError, match=r"config.toml cannot be read .it is a folder."):
        load_runs(folder)


def test_too_many_classes_are_refused_at_once(folder: Path) -> None:
    row = {"class": "a", "task": 0, "n": 1, "zero_shot": 0.5, "after_learning": 0.5, "last": 0.5}
    rewrite(folder, per_class=[row] * (MOST_CLASSES + 1))
    start = time.perf_counter()
    with pytest.raises(Unreadable, match='"per_class"'):
        load(folder / "results.json")
    assert time.perf_counter() - start < 5


def claim(file: Path, **headers: tuple[str, tuple[int, ...]]) -> None:
    """An .npz file whose arrays claim these kinds and shapes, and hold a megabyte of zeros, packed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (kind, shape) in headers.items():
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
                member.write(bytes(2**20))


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"id": ("<i8", (2 * 10**8,))}, "id has the shape"),
        ({"id": ("<i8", (10**18,))}, "id has the shape"),
        ({"id": ("|O", (4,))}, "another kind"),
        ({"id": ("<U1000000", (4,))}, "another kind"),
        ({"id": ("<i8", (4, 10**9))}, "another kind"),
        ({"id": ("<i8", (-4,))}, "id has the shape"),
        ({"id": ("<i8", (4,))}, "id holds more than"),
    ],
)
def test_claims_of_arrays_are_checked_before_they_are_unpacked(
    tmp_path: Path, headers: dict[str, Any], why: str
) -> None:
    claim(tmp_path / "p.npz", **headers)
    tracemalloc.start()
    with pytest.raises(Unreadable, match=why):
        read_columns(tmp_path / "p.npz", columns(1000), {}, 1000)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Packed zeros that would be a gigabyte."""
    with zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("id", "label", "top"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                shape = (3, 2) if name == "top" else (3,)
                npy.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
                for _ in range(64):
                    member.write(bytes(2**22))
    assert (tmp_path / "p.npz").stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(Unreadable, match=r"id unpacks to 268,435,584 bytes, of a file of"):
        read_columns(tmp_path / "p.npz", columns(10), {}, 10)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_predictions_that_repeat_one_answer_are_no_bomb(tmp_path: Path) -> None:
    """Nothing that a run writes packs better than a million equal answers, of ids that follow each other."""
    rows = 1_000_000
    same = np.tile(np.arange(5), (rows, 1))
    np.savez_compressed(tmp_path / "p.npz", id=np.arange(rows), label=np.zeros(rows, np.int64), top=same)
    assert len(read_columns(tmp_path / "p.npz", columns(rows), {}, rows)["top"]) == rows


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_are_packed_as_numpy_packs(tmp_path: Path, packing: int) -> None:
    np.save(tmp_path / "id.npy", np.arange(9))
    with zipfile.ZipFile(tmp_path / "p.npz", "w", packing) as archive:
        archive.write(tmp_path / "id.npy", "id.npy")
    with pytest.raises(Unreadable, match="id is packed in a way that numpy does not use"):
        read_columns(tmp_path / "p.npz", columns(10), {}, 10)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (4",
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (4,), 1: 2}",
        b'"' * 3,
        b"[" * 9000,
        b"\0",
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_any_header_is_one_line(tmp_path: Path, header: bytes, version: int) -> None:
    """What numpy's reader of headers raises is its own matter, from TokenError to TypeError."""
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        length = len(header).to_bytes(2 * version, "little")
        archive.writestr("id.npy", b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(64))
    with pytest.raises(Unreadable, match=r"no \.npz file"):
        read_columns(tmp_path / "p.npz", columns(10), {}, 10)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"top": np.zeros((4, 0), int)}, "top has the shape"),
        ({"top": np.zeros((4, 101), int)}, "top has the shape"),
        ({"top": np.zeros(4, int)}, "top is of another kind"),
        ({"top": np.zeros((5, 1), int)}, "differ in length: top"),
        ({}, "no item named 'top.npy'"),
    ],
)
def test_columns_fit_together(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "p.npz", id=np.arange(4), label=np.arange(4), **arrays)
    with pytest.raises(Unreadable, match=why):
        read_columns(tmp_path / "p.npz", columns(10), {}, 10)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"PK torn"),
        lambda file: file.write_bytes(file.read_bytes()[:-30]),
        lambda file: file.write_bytes(file.read_bytes()[:1000] + bytes(50) + file.read_bytes()[1050:]),
        lambda file: [file.unlink(), os.mkfifo(file)],
        lambda file: [file.unlink(), file.mkdir()],
        lambda file: np.savez(file, label=np.arange(3), top=np.zeros((3, 1)), margin=np.zeros(3)),
        lambda file: np.savez(file, label=np.arange(3), top=np.zeros((3, 1), int), margin=np.full(3, np.nan)),
    ],
)
def test_a_page_does_without_answers_that_cannot_be_read(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    assert predictions(read_run(folder)) is not None
    spoil(folder / "predictions.npz")
    assert predictions(read_run(folder)) is None
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 0


def test_a_comparison_names_answers_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, method in (("a", "gcl"), ("b", "gdro")):
        folder = run_folder(tmp_path / name, 0.5, method=method)
        np.savez(folder / "predictions.npz", id=np.arange(3), label=np.arange(3), top=np.zeros((3, 1), int))
    (tmp_path / "b" / "predictions.npz").write_bytes(b"PK torn")
    assert main(["compare", str(tmp_path)]) == 2
    assert "b/predictions.npz cannot be read (no .npz file" in capsys.readouterr().err
