"""imagenet[:DIR] - ImageNet-1k (ILSVRC 2012): 1,281,167 training images, tested on the 50,000 of its validation part.

DIR, or `$EVERCLIP_DATA/imagenet`, holds `train/nXXXXXXXX/*.JPEG` and `val/nXXXXXXXX/*.JPEG`, or is Kaggle's folder with
`ILSVRC/Data/CLS-LOC`. Images may lie flat in `val` if a list beside it says what they are: Kaggle's
`LOC_val_solution.csv`, or `val_labels.txt`, `val.txt` or `imagenet_2012_validation_synset_labels.txt` with lines
"ILSVRC2012_val_00000001.JPEG n01751748", the same with numbers of the sorted classes (65), or one id per line. `val`
alone is enough for `everclip evaluate`; folders of some of the classes are ImageNet of these.

It cannot be downloaded without an account: https://image-net.org/download-images. Classes are in the order of their
WordNet ids; names are those of open_clip, which calls two pairs of classes alike: here one of each is "projectile" and
"sunglass". Prompts are the 80 of CLIP; `templates=simple` are the 7 best of them, in a tenth of the time.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import ClassVar

from everclip.data import templates
from everclip.data.formats.download import home
from everclip.data.formats.folders import checked_root, subfolders, unreadable
from everclip.data.formats.validation_list import FIRST, image_name
from everclip.data.formats.validation_list import read as read_list
from everclip.data.images import Dataset, FileStore, build
from everclip.data.sources import Official, Source
from everclip.errors import UserError

log = logging.getLogger("everclip")

SITE = "https://image-net.org/download-images"
LAYOUT = f"train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG, from {SITE}"
KAGGLE = "ILSVRC/Data/CLS-LOC"
LISTS = ("LOC_val_solution.csv", "val_labels.txt", "val.txt", "imagenet_2012_validation_synset_labels.txt")
NAMES = {"n04008634": "projectile", "n04355933": "sunglass"}
"""WordNet's own names where open_clip's say "missile" and "sunglasses" a second time."""
_SUFFIXES = (".jpeg", ".jpg", ".png")
_WNID, _TRAINING = re.compile(r"n\d{8}"), re.compile(r"n\d{8}_")


def wnids() -> list[str]:
    """Return the 1,000 WordNet ids, sorted, which is the order of the classes."""
    from timm.data.imagenet_info import ImageNetInfo

    return sorted(ImageNetInfo("imagenet-1k").label_names())


class ImageNet(Source):
    """ImageNet-1k in folders."""

    official: ClassVar[Official] = Official(  # pyright: ignore[reportIncompatibleVariableOverride]
        train=1_281_167, test=50_000, classes=1000, per_class={"test": 50}, home=SITE
    )

    def load(self, argument: str | None, kind: str) -> Dataset:
        top = checked_root(argument or str(home("imagenet", None)), "imagenet", LAYOUT)
        root = top / KAGGLE if (top / KAGGLE).is_dir() else top
        known = wnids()
        train = _class_folders(root, "train", known)
        if (root / "val").is_dir() and _images(root / "val"):
            if sorted_in := _class_folders(root, "val", known):
                raise UserError(
                    f"{root / 'val'} has images beside class folders such as {next(iter(sorted_in))}: sort all of its"
                    " images into these folders, or none"
                )
            test = _flat(root, top, known, set(train))
        else:
            test = _class_folders(root, "val", known)
        if not test:
            what = "has no images in val" if train else "holds no images of ImageNet"
            raise UserError(f"{root} {what}: it needs {LAYOUT}")
        present = sorted({*train} | {*test})
        _check_parts(root, train, present)
        _warn_of_gaps(root, train, test)
        parts = (train, test)
        keys = [(key, wnid, found is test) for found in parts for wnid in found for key in found[wnid]]
        label = {wnid: index for index, wnid in enumerate(present)}
        return build(
            f"imagenet:{argument}" if argument else "imagenet",
            FileStore(root, [key for key, _, _ in keys]),
            [label[wnid] for _, wnid, _ in keys],
            [0] * len(keys),
            [is_test for _, _, is_test in keys],
            class_names(present, known),
            [""],
            templates.shipped("imagenet"),
        )


def class_names(present: list[str], known: list[str]) -> list[str]:
    """Return readable names of some WordNet ids."""
    from open_clip import IMAGENET_CLASSNAMES

    name = dict(zip(known, IMAGENET_CLASSNAMES, strict=True)) | NAMES
    return [name[wnid] for wnid in present]


def _check_parts(root: Path, train: dict[str, list[str]], present: list[str]) -> None:
    """Refuse a single class, and a class that is tested but not trained, unless nothing is trained."""
    if len(present) < 2:
        raise UserError(f"{root} has one class, {present[0]}: a classifier needs at least two: add another")
    untrained = [wnid for wnid in present if wnid not in train]
    if train and untrained:
        raise UserError(f"{untrained[0]} of {root / 'val'} has no training images: add some, or remove it")


def _warn_of_gaps(root: Path, train: dict[str, list[str]], test: dict[str, list[str]]) -> None:
    """Warn of an incomplete part: fewer images are a choice, or an interrupted copy."""
    every = len(train) == ImageNet.official.classes
    whole = ImageNet.official.train if every else 0, ImageNet.official.per_class["test"] * len(test)
    for part, found, wanted in zip(("train", "val"), (train, test), whole, strict=True):
        count = sum(map(len, found.values()))
        if wanted and count != wanted:
            log.warning(
                "%s has %d images, but ImageNet has %d of these classes: everclip datasets check says what is missing",
                *(root / part, count, wanted),
            )


def _check_labels(root: Path, part: str, found: dict[str, list[str]], known: list[str]) -> None:
    """Refuse images in another class's folder. Names of training images start with the id of their class; of the
    validation images, we know the classes of the first."""
    first = {image_name(number): known[place] for number, place in enumerate(FIRST, 1)}
    for wnid, keys in found.items():
        own = f"{part}/{wnid}/{wnid}_"
        for key in keys:
            if key.startswith(own):
                continue
            name = key.rpartition("/")[2].partition(".")[0]
            said = name[:9] if _TRAINING.match(name) else first.get(name, wnid)
            if said != wnid:
                raise UserError(f"{root / key} is of the class {said}: move it to {root / part / said}")


def _images(folder: Path) -> list[str]:
    """Return sorted names of the images directly in a folder. Raises UserError where it cannot be read."""
    try:
        found = os.listdir(folder)
        # macOS puts ._NAME beside a file on some disks
        names = sorted(
            name for name in found if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        )
    except OSError as error:
        unreadable(error)
    if odd := [name for name in names if not name.isascii()]:
        raise UserError(f"{folder} holds {odd[0]!a}, which is not an image of ImageNet: remove it")
    return names


def _class_folders(root: Path, part: str, known: list[str]) -> dict[str, list[str]]:
    """WordNet id -> its images, relative to ``root``; nothing where there is no such part."""
    if not (root / part).is_dir():
        return {}
    folders = subfolders(root / part)
    if packed := sorted(path.name for path in (root / part).glob("n*.tar")):
        raise UserError(f"{root / part} holds {packed[0]}, still packed: unpack each to a folder of its name")
    if strange := sorted({*folders} - {*known}):
        what = "of another ImageNet" if _WNID.fullmatch(strange[0]) else "not a WordNet id such as n01440764"
        raise UserError(
            f'class folder "{strange[0]}" in {root / part} is {what}: remove it, or use imagefolder:{root}'
        )
    found = {wnid: [f"{part}/{wnid}/{name}" for name in _images(root / part / wnid)] for wnid in folders}
    if empty := [wnid for wnid, files in found.items() if not files]:
        raise UserError(f"class folder {root / part / empty[0]} holds no images: add them, or remove it")
    _check_labels(root, part, found, known)
    return found


def _flat(root: Path, top: Path, known: list[str], trained: set[str]) -> dict[str, list[str]]:
    """WordNet id -> its images in a flat ``val``, of the classes trained where some are."""
    places = list(dict.fromkeys([top, root, root / "val"]))
    lists = [place / name for place in places for name in LISTS if (place / name).is_file()]
    if not lists:
        raise UserError(f"images in {root / 'val'} have no labels: put {LISTS[0]} or {LISTS[1]} into {top}")
    wnid_of = read_list(lists[0], known)
    found: dict[str, list[str]] = {}
    left_out: set[str] = set()
    for name in _images(root / "val"):
        wnid = wnid_of.get(Path(name).stem)
        if wnid is None:
            raise UserError(f"{lists[0]} does not list {name} of {root / 'val'}: add it, or remove the image")
        if trained and wnid not in trained:
            left_out.add(wnid)
            continue
        found.setdefault(wnid, []).append(f"val/{name}")
    if left_out:
        log.warning(
            "%s has no folder for %d of the classes in val, such as %s: they are left out",
            *(root / "train", len(left_out), min(left_out)),
        )
    return dict(sorted(found.items()))
