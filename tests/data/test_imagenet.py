"""data=imagenet on small trees of ILSVRC's layouts: folders, flat with a list, Kaggle's, val alone, mislabelled."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip import data
from everclip.cli.app import main
from everclip.data.check import check
from everclip.data.formats.validation_list import FIRST, image_name
from everclip.data.sources.imagenet import ImageNet, wnids
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.refusals import refusal
from tests.pictures import COLOURS, picture
from tests.running import run

KNOWN = wnids()
CLASSES = [KNOWN[place] for place in FIRST]
"""Of the first five validation images, in their order."""
IDS = sorted(CLASSES)
VAL = {image_name(number): CLASSES[(number - 1) % 5] for number in range(1, 11)}
"""Validation images 1 to 10: the first five are what they really are."""
SITE = "https://image-net.org/download-images"
LAYOUT = f"train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG, from {SITE}"


def save(path: Path, wnid: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(list(COLOURS.values())[CLASSES.index(wnid)], seed).save(path, "JPEG")


def train(root: Path, count: int = 4) -> Path:
    for wnid in CLASSES:
        for number in range(count):
            save(root / "train" / wnid / f"{wnid}_{1000 + 37 * number}.JPEG", wnid, number)
    return root


def val(root: Path, flat: bool = False) -> Path:
    for seed, (name, wnid) in enumerate(VAL.items()):
        save(root / "val" / ("" if flat else wnid) / f"{name}.JPEG", wnid, 100 + seed)
    return root


LISTS: dict[str, str] = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for name, wnid in reversed(VAL.items())),
    "val_labels.txt": "".join(f"{name}.JPEG {wnid}\n" for name, wnid in VAL.items()),
    "val.txt": "".join(f"{name}.JPEG {KNOWN.index(wnid)}\n" for name, wnid in VAL.items()),
    "imagenet_2012_validation_synset_labels.txt": "".join(f"{wnid}\n" for wnid in VAL.values()),
}


def labels(found: data.Dataset, part: str) -> dict[str, str]:
    """File name without ending -> class name."""
    images = getattr(found, part)
    return {
        Path(found.train.store.keys[int(row)]).stem: found.class_names[int(label)]
        for row, label in zip(images.rows, images.labels, strict=True)
    }


def named() -> dict[str, str]:
    from open_clip import IMAGENET_CLASSNAMES

    return {wnid: IMAGENET_CLASSNAMES[KNOWN.index(wnid)] for wnid in CLASSES}


def test_classes_and_their_names() -> None:
    from everclip.data.sources.imagenet import class_names

    names = class_names(KNOWN, KNOWN)
    assert (len(KNOWN), KNOWN[0], KNOWN[-1]) == (1000, "n01440764", "n15075141")
    assert (names[0], names[65], names[-1]) == ("tench", "sea snake", "toilet paper")
    assert len({name.casefold() for name in names}) == 1000
    assert (ImageNet.official.train, ImageNet.official.test) == (1_281_167, 50_000)


def test_folders_are_trained_on(tmp_path: Path, toy: str) -> None:
    root = val(train(tmp_path))
    found = data.load(f"imagenet:{root}")
    assert found.class_names == tuple(named()[wnid] for wnid in IDS)
    assert found.train.counts(5).tolist() == [4] * 5
    assert labels(found, "test") == {name: named()[wnid] for name, wnid in VAL.items()}
    assert all(name.startswith(wnid) for wnid in CLASSES for name, label in labels(found, "train").items()
               if label == named()[wnid])  # fmt: skip
    assert not found.held_out
    assert len(found.templates) == 80
    assert len(data.load(f"imagenet:{root}", templates="simple").templates) == 7
    tokens = [f"data=imagenet:{root}", f"model={toy}", "scenario.tasks=2", "templates=simple"]
    results = run(tmp_path / "run", *tokens)
    assert len(results["accuracy_after_stage"]) == 2
    assert len(results["templates"]) == 7
    assert sorted(results["classes"]) == sorted(found.class_names)
    assert results["skipped_images"] == []


def test_what_macos_adds_is_no_image(tmp_path: Path) -> None:
    root = val(train(tmp_path))
    for path in sorted(root.rglob("*.JPEG")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    found = data.load(f"imagenet:{root}")
    assert (len(found.train), len(found.test)) == (20, 10)


def test_a_half_sorted_val_is_refused(tmp_path: Path) -> None:
    root = val(train(tmp_path))
    (root / "val_labels.txt").write_text(LISTS["val_labels.txt"])
    first = next(iter(VAL))
    (root / "val" / VAL[first] / f"{first}.JPEG").rename(root / "val" / f"{first}.JPEG")
    said = complaint(data.load, f"imagenet:{root}")
    assert said.startswith(f"{root}/val has images beside class folders such as n0")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("place", ["", "val"])
def test_flat_with_a_list(tmp_path: Path, name: str, place: str) -> None:
    root = val(train(tmp_path), flat=True)
    (root / place / name).write_text(LISTS[name])
    found = data.load(f"imagenet:{root}")
    assert labels(found, "test") == {name: named()[wnid] for name, wnid in VAL.items()}
    shutil.rmtree(root / "val")
    folders = data.load(f"imagenet:{val(root)}")
    assert labels(folders, "test") == labels(found, "test")
    assert set(folders.train.ids) == set(found.train.ids)


def test_kaggles_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "imagenet"
    val(train(top / "ILSVRC" / "Data" / "CLS-LOC"), flat=True)
    (top / "LOC_val_solution.csv").write_text(LISTS["LOC_val_solution.csv"])
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    found = data.load("imagenet")
    assert labels(found, "test") == {name: named()[wnid] for name, wnid in VAL.items()}
    assert len(found.train) == 20


@pytest.mark.parametrize("flat", [False, True])
def test_val_alone_is_enough_to_evaluate(
    tmp_path: Path, toy: str, flat: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = val(tmp_path, flat)
    if flat:
        (root / "val_labels.txt").write_text(LISTS["val_labels.txt"])
    assert main(["evaluate", toy, "--data", f"imagenet:{root}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["label_set"]) == (10, 5)
    assert {row["class"]: row["n"] for row in result["per_class"]} == dict.fromkeys(named().values(), 2)
    assert (
        f"{root}/val has 10 images, but ImageNet has 250 of these classes: everclip datasets check says what is missing"
        in caplog.messages
    )
    caplog.clear()
    assert main(["evaluate", toy, "--data", f"imagenet:{root}", "--json", "--templates", "simple"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 10
    with pytest.raises(UserError, match="has no training images"):
        run(tmp_path / "run", f"data=imagenet:{root}", f"model={toy}", "scenario.tasks=2")


def test_a_part_of_the_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = val(train(tmp_path), flat=True)
    (root / "val.txt").write_text(LISTS["val.txt"])
    shutil.rmtree(root / "train" / IDS[0])
    with caplog.at_level(logging.WARNING):
        found = data.load(f"imagenet:{root}")
    assert len(found.class_names) == 4
    assert len(found.test) == 8
    assert caplog.messages[0] == (
        f"{root}/train has no folder for 1 of the classes in val, such as {IDS[0]}: they are left out"
    )


def move(part: str, name: str, source: str, target: str) -> Callable[[Path], object]:
    return lambda root: (root / part / source / name).rename(root / part / target / name)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content)


A, B = CLASSES[0], CLASSES[1]
FORM = 'use lines such as "ILSVRC2012_val_00000001.JPEG n01751748"'
BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("nothing", lambda root: [shutil.rmtree(root / part) for part in ("train", "val")],
     f"{{0}} holds no images of ImageNet: it needs {LAYOUT}"),
    ("no val", lambda root: shutil.rmtree(root / "val"), f"{{0}} has no images in val: it needs {LAYOUT}"),
    ("an empty val", lambda root: (shutil.rmtree(root / "val"), (root / "val").mkdir()),
     f"{{0}} has no images in val: it needs {LAYOUT}"),
    ("one class", lambda root: [shutil.rmtree(root / part / wnid) for wnid in CLASSES[1:] for part in ("train", "val")],
     f"{{0}} has one class, {A}: a classifier needs at least two: add another"),
    ("still packed", lambda root: (root / "train" / f"{A}.tar").write_bytes(b""),
     f"{{0}}/train holds {A}.tar, still packed: unpack each to a folder of its name"),
    ("no id", lambda root: (root / "train" / "tench").mkdir(),
     'class folder "tench" in {0}/train is not a WordNet id such as n01440764: remove it, or use imagefolder:{0}'),
    ("ImageNet-21k", lambda root: (root / "val" / "n00004475").mkdir(),
     'class folder "n00004475" in {0}/val is of another ImageNet: remove it, or use imagefolder:{0}'),
    ("an empty class", lambda root: [path.unlink() for path in (root / "train" / A).iterdir()],
     f"class folder {{0}}/train/{A} holds no images: add them, or remove it"),
    ("a class that is not trained", lambda root: shutil.rmtree(root / "train" / A),
     f"{A} of {{0}}/val has no training images: add some, or remove it"),
    ("a training image in another folder", move("train", f"{A}_1000.JPEG", A, B),
     f"{{0}}/train/{B}/{A}_1000.JPEG is of the class {A}: move it to {{0}}/train/{A}"),
    ("a validation image in another folder", move("val", f"{image_name(1)}.JPEG", A, B),
     f"{{0}}/val/{B}/{image_name(1)}.JPEG is of the class {A}: move it to {{0}}/val/{A}"),
    ("a training image in val", lambda root: (root / "train" / A / f"{A}_1000.JPEG").rename(
        root / "val" / B / f"{A}_1000.JPEG"),
     f"{{0}}/val/{B}/{A}_1000.JPEG is of the class {A}: move it to {{0}}/val/{A}"),
    ("no image of ImageNet", lambda root: (root / "val" / A / "ü.JPEG").write_bytes(b""),
     f"{{0}}/val/{A} holds '\\xfc.JPEG', which is not an image of ImageNet: remove it"),
]  # fmt: skip
FLAT: list[tuple[str, Callable[[Path], object], str]] = [
    ("no list", lambda root: None,
     "images in {0}/val have no labels: put LOC_val_solution.csv or val_labels.txt into {0}"),
    ("a short list", text("val.txt", LISTS["val.txt"].rsplit("\n", 2)[0]),
     f"{{0}}/val.txt does not list {image_name(10)}.JPEG of {{0}}/val: add it, or remove the image"),
    ("the devkit's numbers", text("val.txt", "490\n361\n171\n822\n297\n"),
     f"line 1 of {{0}}/val.txt is a number alone, of the devkit's own order: {FORM}"),
    ("the devkit's numbers beside names",
     text("val.txt", "".join(f"{name}.JPEG {number}\n" for name, number in zip(VAL, range(490, 500), strict=True))),
     f"{{0}}/val.txt has another order ({image_name(1)} is {A}, not {KNOWN[490]}): {FORM}"),
    ("ids in another order",
     text("imagenet_2012_validation_synset_labels.txt", "".join(f"{wnid}\n" for wnid in IDS * 2)),
     f"{{0}}/imagenet_2012_validation_synset_labels.txt has another order ({image_name(2)} is {B}, not"
     f" {IDS[1]}): {FORM}"),
    ("a blank line", text("imagenet_2012_validation_synset_labels.txt", f"{A}\n\n{B}\n"),
     "line 2 of {0}/imagenet_2012_validation_synset_labels.txt is blank, and lines may be counted: remove it"),
    ("listed twice", text("val_labels.txt", LISTS["val_labels.txt"] + f"{image_name(6)}.JPEG {B}\n"),
     f"{{0}}/val_labels.txt lists {image_name(6)} as {A} and as {B}: keep one of them"),
    ("an unknown id", text("val_labels.txt", LISTS["val_labels.txt"] + "ILSVRC2012_val_00000011.JPEG n00004475\n"),
     f'{{0}}/val_labels.txt gives {image_name(11)} the id "n00004475", no class of ImageNet-1k: {FORM}'),
    ("another form", text("val_labels.txt", "one two three\n"),
     f"line 1 of {{0}}/val_labels.txt is 'one two three': {FORM}"),
    ("an endless number", text("val.txt", f"{image_name(1)}.JPEG {'7' * 5000}\n"),
     f"line 1 of {{0}}/val.txt is '{(image_name(1) + '.JPEG ' + '7' * 40)[:40]}': {FORM}"),
    ("a number too large", text("val.txt", f"{image_name(1)}.JPEG 1000\n"),
     f"line 1 of {{0}}/val.txt is '{image_name(1)}.JPEG 1000': {FORM}"),
    ("an empty list", text("val.txt", ""), "label list file {0}/val.txt is empty: use one entry per line"),
]  # fmt: skip
CASES = [(name, False, *rest) for name, *rest in BAD] + [(name, True, *rest) for name, *rest in FLAT]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_data(
    tmp_path: Path,
    case: tuple[str, bool, Callable[[Path], object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, flat, spoil, message = case
    root = val(train(tmp_path / "set"), flat)
    spoil(root)
    assert refusal(f"imagenet:{root}", SITE, capsys) == message.format(root)


def test_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    for spec in ("imagenet", f"imagenet:{tmp_path}/imagenet"):
        said = complaint(data.load, spec)
        assert said == f"data folder {tmp_path}/imagenet does not exist: give a folder with {LAYOUT}"


@pytest.mark.usefixtures("unprivileged")
def test_an_unreadable_class(tmp_path: Path) -> None:
    root = val(train(tmp_path))
    (root / "train" / A).chmod(0)
    with pytest.raises(UserError, match=rf"{A} cannot be read \(Permission denied\): check its permissions"):
        data.load(f"imagenet:{root}")


def test_a_check_counts_and_decodes(tmp_path: Path) -> None:
    root = val(train(tmp_path))
    (root / "train" / A / f"{A}_1000.JPEG").write_bytes(b"<html>")
    report = check(f"imagenet:{root}")
    assert (report.train, report.test, report.classes) == (20, 10, 5)
    assert (report.sampled, report.decoded) == (30, 29)
    assert report.problems == (
        "5 classes of 1000",
        "20 train images of 1,281,167",
        "10 test images of 50,000",
        *(f'class "{named()[wnid]}" has 2 test images of 50' for wnid in IDS[:3]),
        "and 2 more of the kind",
        f"{root}/train/{A}/{A}_1000.JPEG cannot be decoded (no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM): put the"
        " original there",
    )
