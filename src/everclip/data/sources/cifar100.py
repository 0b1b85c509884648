"""cifar100[:DIR] - CIFAR-100: 60,000 pictures of 32 x 32 pixels, 100 classes of 500 training and 100 test images.

DIR holds `cifar-100-python.tar.gz`, or what is in it: `train`, `test` and `meta` (torchvision's layout); or the
pictures themselves as `train/CLASS/*` and `test/CLASS/*`, with the official classes and counts. Without DIR it is
`$EVERCLIP_DATA/cifar100`, else a folder in everclip's cache; where nothing is there, the archive (169 MB) is
downloaded from https://www.cs.toronto.edu/~kriz/cifar.html. Prompts are the 18 of CLIP
(https://github.com/openai/CLIP/blob/main/data/prompts.md). `scenario.order=icarl` is the order of iCaRL, PODNet and
DyTox; the default is that of PyCIL and UCIR.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everclip.data import templates
from everclip.data.formats.download import Remote, check_room, fetch, home, locked, matches
from everclip.data.formats.folders import check_names, dataset, image_files, subfolders
from everclip.data.formats.unpack import Limits, unpack
from everclip.data.formats.unpickle import text, unpickle
from everclip.data.gathered import Encoded
from everclip.data.images import MOST_BYTES, Dataset, Store, build, content_id
from everclip.data.prompts import clean
from everclip.data.sources import Official, Source
from everclip.errors import UserError
from everclip.system.reading import read_bytes, readable

SIDE = 32
ARCHIVE = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    169_001_437,
    "md5:eb9058c3a382ffc7106e4002c42a8d85",
)
FOLDER = "cifar-100-python"
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
LIMITS = Limits(files=20, size=400 << 20)
PARTS = ("train", "test")
# fmt: off
NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on
"""The official class names in the order of their labels, as folders are called."""


class CifarStore(Store):
    """Rows of uint8 arrays ``[n, 3072]`` (all red, all green, all blue), as PNG files."""

    def __init__(self, parts: dict[str, NDArray[np.uint8]]) -> None:
        self.keys = [f"{part}/{row:05d}.png" for part, rows in parts.items() for row in range(len(rows))]
        self._rows = [row for rows in parts.values() for row in rows]

    def read(self, row: int) -> bytes:
        pixels = self._rows[row].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def nbytes(self, row: int) -> int:
        return self._rows[row].nbytes

    def alone(self, row: int) -> tuple[Store, int]:
        return Encoded([self.keys[row]], [self.read(row)]), 0

    def stamp(self, row: int) -> tuple[int, int]:
        return self.nbytes(row), 0  # the files are the originals, or they are refused

    def content(self, row: int) -> int:
        return content_id(self._rows[row].tobytes())  # and not of a PNG file, which takes long to make


class Cifar100(Source):
    """CIFAR-100, downloaded if it is missing."""

    official: ClassVar[Official] = Official(  # pyright: ignore[reportIncompatibleVariableOverride]
        train=50_000,
        test=10_000,
        classes=100,
        per_class={"train": 500, "test": 100},
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
    )

    def load(self, argument: str | None, kind: str) -> Dataset:
        root = home("cifar100", argument)
        name = f"cifar100:{argument}" if argument else "cifar100"
        if _has_folders(root):
            return _pictures(root, name)
        folder = _folder(root)
        names = [clean(text(name)) for name in _read(folder, "meta")["fine_label_names"]]
        parts = {part: _read(folder, part) for part in PARTS}
        labels = [label for of in parts.values() for label in of["fine_labels"]]
        return build(
            name,
            CifarStore({part: of["data"] for part, of in parts.items()}),
            labels,
            [0] * len(labels),
            [part == "test" for part, of in parts.items() for _ in of["fine_labels"]],
            check_names(names, str(folder / "meta")),
            [""],
            templates.shipped("cifar100"),
        )

    def missing(self, argument: str | None) -> list[str]:
        root = home("cifar100", argument)
        if _has_folders(root) or _there(root) is not None or (root / ARCHIVE.name).exists():
            return []
        return [
            f"{root / ARCHIVE.name} is missing: put {ARCHIVE.url} there, or let everclip train download it"
        ]

    def remotes(self) -> list[Remote]:
        return [ARCHIVE]


def _has_folders(root: Path) -> bool:
    """Return whether the pictures lie there in folders; torchvision's ``train`` and ``test`` are files."""
    return any((root / part).is_dir() for part in PARTS)


def _pictures(root: Path, name: str) -> Dataset:
    """Return the data set of folders ``train/CLASS`` and ``test/CLASS``. Raises UserError for other counts."""
    found: list[tuple[str, str, str, bool]] = []
    for part in PARTS:
        if not (root / part).is_dir():
            raise UserError(f"{root / part} is missing: put the pictures there as {part}/CLASS/*.png")
        folders = subfolders(root / part)
        if strange := [folder for folder in folders if folder not in NAMES]:
            raise UserError(
                f'{root / part} has the extra class "{strange[0]}": remove it, or use data=imagefolder:{root}'
            )
        for folder in NAMES:
            files = image_files(root, f"{part}/{folder}") if folder in folders else []
            if len(files) != (wanted := Cifar100.official.per_class[part]):
                raise UserError(
                    f"{root / part / folder} has {len(files)} images where CIFAR-100 has {wanted}: put the originals"
                    f" there, or use data=imagefolder:{root} for another selection"
                )
            found += [(key, "", folder, part == "test") for key in files]
    made = dataset(name, root, found, [""], [f"{part}/" for part in PARTS], held_out=False)
    return replace(made, templates=templates.shipped("cifar100"))


def _there(root: Path) -> Path | None:
    """Return the folder with the three files, or some of them."""
    for folder in (root / FOLDER, root):
        if any((folder / name).is_file() for name in MD5):
            return folder
    return None


def _folder(root: Path) -> Path:
    """Return the folder with the three files, unpacked or downloaded if need be."""
    found = _there(root)
    if found is None:
        with locked(root):
            if _there(root) is None:  # nor did another process unpack it meanwhile
                _unpack(root)
        found = root / FOLDER
    for name in MD5:
        if not (found / name).is_file():
            raise UserError(f"{found / name} is missing: {_again(found)}")
    return found


def _again(folder: Path) -> str:
    """Say what to do about a file in ``folder``, which is the user's own if its name is not the archive's."""
    if folder.name == FOLDER:
        return f"remove the folder {folder}, to have it unpacked or downloaded again"
    return f"get the original from {ARCHIVE.url}"


def _unpack(root: Path) -> None:
    """Unpack the folder from the archive, which is downloaded if it is missing."""
    archive = root / ARCHIVE.name
    if not archive.exists():
        fetch(ARCHIVE, archive)
    elif not matches(archive, ARCHIVE.digest):
        raise UserError(f"{archive} is not the original (its MD5 differs): remove it, to have it downloaded")
    check_room(root, LIMITS.size // 2)
    unpack(archive, FOLDER, root / FOLDER, LIMITS, lambda part: _check(part, archive))


def _check(part: Path, archive: Path) -> None:
    for name in MD5:
        if not (part / name).is_file():
            raise UserError(f"{archive} lacks the file {FOLDER}/{name}: remove it, to have it downloaded")


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return the dict in one of the three files, whose MD5 must be that of the original."""
    path = folder / name
    with readable(path, "check its permissions"):
        content = read_bytes(path, MOST_BYTES)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
        raise UserError(f"{path} is not the original (its MD5 differs): {_again(folder)}")
    return unpickle(content, str(path))
