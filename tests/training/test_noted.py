"""A run knows its images again: it goes on with those that it began with, wherever they lie, and with no others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everclip import data
from everclip.cli.app import main
from everclip.config.sections import Scenario
from everclip.data import inventory, scenarios
from everclip.data.inventory import Inventory, compare, hashed, of
from everclip.errors import UserError
from everclip.report.build import build
from everclip.runs.run import IMAGES
from everclip.system.reading import Unreadable
from everclip.training import noted
from tests.data.test_webdataset import shards, sized
from tests.pictures import image_folder
from tests.running import run, run_for, timeless


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one size in bytes, as if they had been unpacked together."""
    root = image_folder(tmp_path / "photos", {"train": 4, "test": 3}, suffix=".bmp")
    for path in root.rglob("*.bmp"):
        os.utime(path, (1e9, 1e9))
    return root


@pytest.fixture
def tokens(folder: Path, toy: str) -> list[str]:
    return [f"data=imagefolder:{folder}", f"model={toy}"]


def replaced(folder: Path) -> None:
    image = Image.open(folder / "train/green/2.bmp")
    Image.eval(image, lambda value: 255 - value).save(folder / "train/green/2.bmp")


def swapped(folder: Path) -> None:
    """Two classes: neither sizes nor times of files are others."""
    for part in ("train", "test"):
        (folder / part / "red").rename(folder / part / "aside")
        (folder / part / "blue").rename(folder / part / "red")
        (folder / part / "aside").rename(folder / part / "blue")


def gone(folder: Path) -> None:
    (folder / "train/white/0.bmp").unlink()


def more(folder: Path) -> None:
    shutil.copy(folder / "test/red/0.bmp", folder / "train/black/9.bmp")


CHANGES = [
    (replaced, 1, "train/green/2.bmp (it is another picture)"),
    (swapped, 14, "/0.bmp (it is another picture)"),
    (gone, 1, "train/white/0.bmp (it is gone)"),
    (more, 1, "train/black/9.bmp (it is new)"),
]


@pytest.mark.parametrize(("change", "count", "first"), CHANGES)
@pytest.mark.parametrize("budget", [inventory.BUDGET, 0])
def test_other_images_are_refused_and_named(
    change: Callable[[Path], None],
    count: int,
    first: str,
    budget: int,
    folder: Path,
    tokens: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether their contents are known, or sizes and stamps alone."""
    monkeypatch.setattr(inventory, "BUDGET", budget)
    assert run_for(tmp_path / "run", 2, *tokens) is None
    before = (tmp_path / "run" / IMAGES).read_bytes()
    change(folder)
    assert main(["resume", str(tmp_path / "run")]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"is not what it was when this run began: {count} of 42 images differ, such as" in error
    assert first in error
    assert error.endswith(
        f"put the data back, start a new run, or use everclip resume {tmp_path / 'run'} --changed-data to"
        f" continue anyway"
    )
    with pytest.raises(UserError, match="is not what it was"):
        run(tmp_path / "run", *tokens)  # and so is the same train command
    assert (tmp_path / "run" / IMAGES).read_bytes() == before


def test_with_changed_data_it_goes_on_and_says_so(
    folder: Path, tokens: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_for(tmp_path / "run", 1, *tokens) is None
    replaced(folder)
    resumed = ["resume", str(tmp_path / "run"), "--changed-data", "--json"]
    assert main(resumed) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["data_changed"] == {"images": 1, "first": "train/green/2.bmp"}
    (tmp_path / "run" / "results.json").unlink()
    assert main(["resume", str(tmp_path / "run"), "--json"]) == 0  # they are known now
    assert json.loads(capsys.readouterr().out)["data_changed"] == results["data_changed"]
    (tmp_path / "run" / "results.json").unlink()
    swapped(folder)
    assert main(resumed) == 0
    assert json.loads(capsys.readouterr().out)["data_changed"] == {"images": 15, "first": "train/green/2.bmp"}


@pytest.mark.parametrize("budget", [inventory.BUDGET, 5 * 4854, 0])
def test_a_copy_of_the_data_is_the_same_data(
    budget: int, folder: Path, tokens: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another disk files have other times and inodes."""
    monkeypatch.setattr(inventory, "BUDGET", budget)
    whole = run(tmp_path / "whole", *tokens)
    assert run_for(tmp_path / "run", 2, *tokens) is None
    first = noted.read(tmp_path / "run")
    assert first is not None
    assert (first.contents >= 0).sum() == min(42, budget // first.sizes[0])
    folder.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", folder, copy_function=shutil.copyfile)
    assert timeless(run(tmp_path / "run", *tokens)) == timeless(whole)
    assert whole["data_changed"] is None
    now = noted.read(tmp_path / "run")
    assert now is not None
    assert now.contents.tolist() == first.contents.tolist()
    assert not (now.stamps == first.stamps).any()


def test_images_without_a_time_are_not_taken_for_others(tmp_path: Path) -> None:
    """Beyond the budget nothing is known of an image in an Arrow table but its size, beside files or alone."""
    sizes, stamps = np.full(3, 100), np.array([7, 8, -1])
    none, unread = np.zeros(3, dtype=np.int64), np.full(3, inventory.UNREAD)
    old, new = (
        Inventory(["a", "b", "train/0"], none, none, none, sizes.copy(), stamps.copy(), unread)
        for _ in range(2)
    )
    assert not inventory._other(old, new, lambda rows: rows)[1].any()
    new.stamps[0] = 9
    assert inventory._other(old, new, lambda rows: rows)[1].tolist() == [True, False, False]
    new.sizes[2] = 101
    assert inventory._other(old, new, lambda rows: rows)[1].tolist() == [True, False, True]


def test_a_run_of_an_earlier_version_goes_on(
    tokens: list[str], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_for(tmp_path / "run", 2, *tokens) is None
    (tmp_path / "run" / IMAGES).unlink()
    replaced(folder)
    assert run(tmp_path / "run", *tokens)["data_changed"] is None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert "changes to its images cannot be detected" in (tmp_path / "run" / "run.log").read_text()
    assert (tmp_path / "run" / IMAGES).is_file()


@pytest.mark.parametrize("content", [b"", b"PK", lambda whole: whole[:-40], lambda whole: whole[:200]])
def test_a_damaged_note_is_named(
    content: bytes | Callable[[bytes], bytes], tokens: list[str], tmp_path: Path
) -> None:
    assert run_for(tmp_path / "run", 2, *tokens) is None
    file = tmp_path / "run" / IMAGES
    file.write_bytes(content if isinstance(content, bytes) else content(file.read_bytes()))
    with pytest.raises(UserError, match=r"images\.npz is damaged \(.+\): remove it") as refused:
        run(tmp_path / "run", *tokens)
    assert "\n" not in str(refused.value)
    file.unlink()
    run(tmp_path / "run", *tokens)


def test_a_fork_begins_with_the_images_of_its_source(folder: Path, tokens: list[str], tmp_path: Path) -> None:
    run(tmp_path / "base", *tokens)
    fork = [*tokens, f"fork={tmp_path / 'base'}@2", "train.lr=1e-3"]
    run(tmp_path / "fork", *fork)
    assert (tmp_path / "fork" / IMAGES).is_file()
    replaced(folder)
    with pytest.raises(UserError, match=r"fork=.*base@2: .*1 of 42 images differ, such as train/green/2.bmp"):
        run(tmp_path / "other", *fork)
    assert not (tmp_path / "other").exists()


def test_a_run_that_is_used_says_that_its_images_are_others(
    folder: Path, tokens: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", *tokens, "method=ncm")
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "differ" not in capsys.readouterr().err
    replaced(folder)
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "1 of 42 images differ, such as train/green/2.bmp" in capsys.readouterr().err


def listed(path: Path, rows: list[str]) -> str:
    path.write_text("path,label,split,domain\n" + "\n".join(rows) + "\n")
    return f"csv:{path}"


def inventory_of(spec: str, tasks: int = 1) -> Inventory:
    found = data.load(spec)
    cut = scenarios.build(Scenario(tasks=tasks, order="given")).cut(found, 0)
    return hashed(of(cut, found.train.store), cut, found.train.store)


def changed(before: Inventory, spec: str, tasks: int = 1) -> str:
    found = data.load(spec)
    change, _ = compare(
        before, scenarios.build(Scenario(tasks=tasks, order="given")).cut(found, 0), found.train.store
    )
    return "" if change is None else f"{change.images} {change.first} {change.what}"


def test_lists_that_say_something_else_of_the_same_files(folder: Path, tmp_path: Path) -> None:
    rows = [
        f"photos/{part}/{name}/{number}.bmp,{name},{part},a"
        for part in ("train", "test")
        for name in ("red", "blue")
        for number in range(3)
    ]
    spec = listed(tmp_path / "list.csv", rows)
    before = inventory_of(spec)
    assert changed(before, spec) == ""
    key = "photos/train/red/1.bmp"
    for words, what in (
        (f"{key},blue,train,a", "it has another class"),
        (f"{key},red,test,a", "it is in another part or domain"),
        (f"{key},red,train,b", "it is in another part or domain"),
    ):
        listed(tmp_path / "list.csv", [words if row.startswith(key) else row for row in rows])
        found = changed(before, spec)
        assert what in found
        assert key in found
    listed(tmp_path / "list.csv", rows[::-1])
    assert changed(before, spec) == ""  # the order of a list alone means nothing


def test_shards_and_archives(tmp_path: Path) -> None:
    emoji = data.load("emoji")
    tasks = scenarios.build(Scenario(tasks=2, order="given")).cut(emoji, 0)
    stamped = of(tasks, emoji.train.store)
    assert (stamped.stamps > 0).all()  # checksums, without reading a picture
    assert compare(stamped, tasks, emoji.train.store)[0] is None
    spec = f"webdataset:{sized(shards(tmp_path))}"
    before = inventory_of(spec)
    assert changed(before, spec) == ""
    for file in tmp_path.rglob("*.tar"):
        file.write_bytes(file.read_bytes())  # another time, the same content
    assert changed(before, spec) == ""


def test_what_is_kept_is_read_again(folder: Path) -> None:
    found = inventory_of(f"imagefolder:{folder}", 3)
    (folder / "kept.npz").write_bytes(found.packed())
    again = Inventory.read(folder / "kept.npz")
    assert again.keys == found.keys
    for name in inventory._COLUMNS:
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize("name", ["keys", "changed"])
def test_texts_have_a_byte_for_each_character(folder: Path, name: str) -> None:
    """Wider numbers would take eight times the memory that a text may."""
    (folder / "kept.npz").write_bytes(inventory_of(f"imagefolder:{folder}", 3).packed())
    with np.load(folder / "kept.npz") as file:
        arrays = dict(file)
    np.savez(folder / "kept.npz", **arrays | {name: arrays[name].astype(np.uint64)})
    with pytest.raises(Unreadable, match=f"{name} is of another kind: uint64"):
        Inventory.read(folder / "kept.npz")


def test_contents_are_taken_first_where_they_may_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(tmp_path / "photos", {"train": 3, "test": 2}, 2)
    twins = [root / "train/red/0.png", root / "test/green/1.png"]
    twins[0].write_bytes(bytes(5000))
    twins[1].write_bytes(bytes(5000))
    monkeypatch.setattr(inventory, "BUDGET", 10_000)
    for number, path in enumerate(sorted({*root.rglob("*.png")} - {*twins})):  # no other two have one size
        path.write_bytes(path.read_bytes().ljust(9000 + number))
    found = inventory_of(f"imagefolder:{root}")
    assert found.twins().sum() == 2
    assert found.duplicates() == 1
    monkeypatch.setattr(inventory, "BUDGET", 5_000)
    assert inventory_of(f"imagefolder:{root}").duplicates() is None


def test_copies_in_train_and_test_are_counted_and_said(
    folder: Path, tokens: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (folder / "test").rglob("*.bmp"):
        image = Image.open(path)
        Image.eval(image, lambda value: value // 2).save(path)
    caplog.set_level("WARNING")
    assert run(tmp_path / "clean", *tokens)["duplicates"] == 0
    assert not caplog.messages
    for number in range(2):
        shutil.copy(folder / f"train/red/{number}.bmp", folder / f"test/red/{number}.bmp")
    assert run(tmp_path / "copies", *tokens)["duplicates"] == 2
    assert caplog.messages == ["2 of 18 test images are also training images, which inflates accuracy"]
    page = build([tmp_path / "copies"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 of 18 test pictures are training pictures too, byte for byte" in page
    shutil.copy(folder / "train/red/0.bmp", folder / "train/green/copy.bmp")
    assert run(tmp_path / "more", *tokens)["train_copies"] == 1
