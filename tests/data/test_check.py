"""everclip datasets check: on sets without official numbers, and what its lines say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.data import check as module
from everclip.data.check import check
from everclip.errors import UserError
from tests.pictures import domain_folder, image_folder, picture


def test_a_complete_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path, {"train": 3, "test": 2}, 3)
    assert main(["datasets", "check", f"imagefolder:{tmp_path}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"imagefolder:{tmp_path}: 3 classes",
        "      training       test",
        "all          9          6",
        "15 of a sample of 15 images can be decoded",
        "",
        "complete",
    ]
    assert main(["datasets", "check", f"imagefolder:{tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "complete": True,
        "data": f"imagefolder:{tmp_path}",
        "train": 9,
        "test": 6,
        "classes": 3,
        "domains": {},
        "sampled": 15,
        "decoded": 15,
        "problems": [],
        "home": "",
    }


def test_domains_are_counted(tmp_path: Path) -> None:
    report = check(f"domainfolder:{domain_folder(tmp_path)}")
    assert list(report.domains) == ["domain0", "domain1", "domain2"]
    assert all(sum(counts.values()) == 18 for counts in report.domains.values())
    assert sum(counts["train"] for counts in report.domains.values()) == report.train


def test_the_shipped_set_is_complete() -> None:
    report = check("emoji")
    assert report.problems == ()
    assert report.sampled == report.decoded == module.SAMPLE


def broken(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (broken(b""), "no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM"),
        (broken(b"<html>404</html>"), "no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM"),
        (half, "image file is truncated"),
    ],
)
def test_images_that_cannot_be_decoded(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path, {"train": 3, "test": 2}, 3)
    spoil(tmp_path / "train" / "red" / "0.png")
    assert main(["datasets", "check", f"imagefolder:{tmp_path}"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-4] == "14 of a sample of 15 images can be decoded"
    assert out[-2].startswith(f"{tmp_path}/train/red/0.png cannot be decoded ({reason}")
    assert out[-2].endswith("): put the original there")
    assert out[-1] == f"not complete: imagefolder:{tmp_path}"


def test_many_broken_images_are_counted(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 3, "test": 2}, 3)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    problems = check(f"imagefolder:{tmp_path}").problems
    assert len(problems) == module.SHOWN + 1
    assert problems[-1] == "and 6 more of the kind"


def test_the_sample_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path, {"train": 6, "test": 2}, 3)
    monkeypatch.setattr(module, "SAMPLE", 5)
    report = check(f"imagefolder:{tmp_path}")
    assert (report.sampled, report.decoded) == (5, 5)
    paths = sorted(tmp_path.rglob("*.png"))
    failing = []
    for path in paths:  # of all images, five are looked at
        content = path.read_bytes()
        path.write_bytes(b"")
        failing += [path] if check(f"imagefolder:{tmp_path}").problems else []
        path.write_bytes(content)
    assert len(failing) == 5


def test_files_that_are_listed_and_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk from which files vanish between their listing and their reading."""
    from everclip import data

    image_folder(tmp_path, {"train": 3, "test": 2}, 3)
    found = data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "test" / "blue" / "1.png").unlink()
    monkeypatch.setattr(data, "load", lambda spec, pairs: found)
    assert check(f"imagefolder:{tmp_path}").problems == (
        f"{tmp_path}/test/blue/1.png is missing: put it there",
        f"{tmp_path}/test/blue/1.png cannot be decoded (No such file or directory): put the original there",
    )


@pytest.mark.parametrize(
    ("tokens", "code", "line"),
    [
        (["check"], 2, 'everclip datasets check needs a data set: use "everclip datasets check photos"'),
        (["check", "cifar10"], 2, 'data "cifar10" is neither a source nor a folder that exists; did you mean'),
        (["emoji", "more"], 2,
         '"more" after "emoji" is one word too many: use "everclip datasets check emoji"'),
    ],
)  # fmt: skip
def test_what_is_not_understood(
    tokens: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", *tokens]) == code
    captured = capsys.readouterr()
    assert not captured.out
    assert line in captured.err


def test_a_folder_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "red").mkdir()
    picture((9, 9, 9), 0).save(tmp_path / "red" / "0.png")
    assert main(["datasets", "check", f"imagefolder:{tmp_path}", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["complete"]
    assert report["train"] is None
    assert report["problems"] == [
        f'{tmp_path} has one class, "red": a classifier needs two: add a CLASS folder'
    ]
    with pytest.raises(UserError, match="is neither a source nor a folder"):
        check("imagenett")
