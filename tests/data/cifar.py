"""CIFAR-100's archive in small: pickles as Python 2 wrote them, in a tar of the original's layout."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everclip.data.sources.cifar100 import NAMES
from tests.pictures import COLOURS, picture

FILES = ("train", "test", "meta")


def python2_pickle(value: Any) -> bytes:
    """What Python 2's cPickle writes in protocol 2, without memo; ``bytes`` are its texts."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    match value:
        case bytes() if len(value) < 256:
            return b"U" + struct.pack("<B", len(value)) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int() if 0 <= value < 256:
            return b"K" + struct.pack("<B", value)
        case int() if 0 <= value < 65536:
            return b"M" + struct.pack("<H", value)
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(_pickled(item) for item in value) + b"e"
        case dict():
            return b"}(" + b"".join(_pickled(item) for pair in value.items() for item in pair) + b"u"
        case np.ndarray():
            shape = b"".join(_pickled(side) for side in value.shape) + {1: b"\x85", 2: b"\x86"}[value.ndim]
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
            kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            return made + b"(K\x01" + shape + kind + b"\x89" + _pickled(value.tobytes()) + b"tb"
    raise TypeError(type(value))


def names(classes: int) -> list[bytes]:
    """Class names as in the original: sorted, with underscores."""
    return [f"{list(COLOURS)[n % len(COLOURS)]}_thing_{n:03d}".encode() for n in range(classes)]


def part(classes: int, count: int, seed: int) -> dict[bytes, Any]:
    """The dict of one part: ``count`` noisy pictures of each class, in its class's colour, mixed."""
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), count))
    colours = list(COLOURS.values())
    pictures = [
        np.asarray(picture(colours[label % len(colours)], seed + n, 32)).transpose(2, 0, 1).reshape(-1)
        for n, label in enumerate(order.tolist())
    ]
    return {
        b"filenames": [b"image_s_%06d.png" % n for n in range(len(order))],
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": order.tolist(),
        b"coarse_labels": (order // 5).tolist(),
        b"data": np.stack(pictures).astype(np.uint8),
    }


def contents(classes: int = 6, train: int = 6, test: int = 3) -> dict[str, dict[bytes, Any]]:
    """File name -> its dict."""
    return {
        "train": part(classes, train, 0),
        "test": part(classes, test, 10_000),
        "meta": {b"fine_label_names": names(classes), b"coarse_label_names": [b"things"]},
    }


def archive(files: dict[str, bytes]) -> bytes:
    """``cifar-100-python.tar.gz`` with these files, and the editor's back-up that the original has."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-100-python")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for name, content in {"file.txt~": b"", **files}.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def folders(root: Path, train: int, test: int) -> Path:
    """All classes as folders of PNG files, ``train`` and ``test`` pictures of each."""
    colours = list(COLOURS.values())
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(NAMES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for n in range(count):
                picture(colours[label % len(colours)], label + n, 32).save(folder / f"{n:03d}.png")
    return root


def picture_of(values: dict[bytes, Any], row: int) -> NDArray[np.uint8]:
    """Pixels ``[32, 32, 3]`` of a row, as the data set's page explains them."""
    red, green, blue = (values[b"data"][row, 1024 * c : 1024 * (c + 1)].reshape(32, 32) for c in range(3))
    return np.stack([red, green, blue], axis=-1)
