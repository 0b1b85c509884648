"""Gather images of several stores into one table, each known by its content."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from everclip.data.images import MOST_BYTES, ImageSet, Store, content_id
from everclip.errors import UserError


class Replaced(UserError):
    """Another archive has taken the place of the one that was opened."""


class Encoded(Store):
    """Encoded images, or features, in main memory."""

    def __init__(self, keys: Sequence[str], contents: Sequence[bytes], width: int | None = None) -> None:
        self.keys = keys
        self.width = width
        self._contents = contents

    def read(self, row: int) -> bytes:
        return self._contents[row]

    def nbytes(self, row: int) -> int:
        return len(self._contents[row])

    def alone(self, row: int) -> tuple[Store, int]:
        return Encoded([self.keys[row]], [self._contents[row]], self.width), 0


class Archive(Store):
    """Files that lie uncompressed in a zip archive, which is open only while one is read.

    Raises OSError or zipfile.BadZipFile where it cannot be read, KeyError where a file is missing; later, Replaced.
    """

    def __init__(self, path: Path, keys: Sequence[str], width: int | None = None) -> None:
        self.keys = keys
        self.width = width
        self._path = path
        with zipfile.ZipFile(path) as archive:
            found = [archive.getinfo(key) for key in keys]
        with path.open("rb") as file:
            self._places = [(_content(file, info.header_offset), info.file_size) for info in found]
            length = file.seek(0, os.SEEK_END)
        self._stamps = [(info.file_size, info.CRC) for info in found]
        if any(info.compress_type != zipfile.ZIP_STORED for info in found) or any(
            start + size > length or size > MOST_BYTES for start, size in self._places
        ):
            raise zipfile.BadZipFile("it holds something else than files that lie in it as they are")

    def read(self, row: int) -> bytes:
        start, size = self._places[row]
        with self._path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if (len(content), zlib.crc32(content)) != self._stamps[row]:
            raise Replaced(
                f"{self._path} has changed since it was opened: load the model again, or repeat the command"
            )
        return content

    def nbytes(self, row: int) -> int:
        return self._places[row][1]

    def stamp(self, row: int) -> tuple[int, int]:
        return self._stamps[row]


def _content(file: BinaryIO, header: int) -> int:
    """Find where the content begins after a local header: 30 bytes, the name, and an extra field."""
    file.seek(header + 26)
    sizes = file.read(4)
    if len(sizes) < 4:
        raise zipfile.BadZipFile("it ends too early")
    name, extra = struct.unpack("<HH", sizes)
    return header + 30 + name + extra


class Gathered(Store):
    """Rows of other stores, one after another. Whatever else those hold can be freed."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        rows: list[tuple[Store, int]] = [(part.store, row) for part in sets for row in part.rows.tolist()]
        self.keys: Sequence[str] = [store.keys[row] for store, row in rows]
        self._places = [store.alone(row) for store, row in rows]
        self.width = next((part.store.width for part in sets if len(part)), None)

    def _place(self, row: int) -> tuple[Store, int]:
        """Return the store of a row, and the row there."""
        return self._places[row]

    def read(self, row: int) -> bytes:
        store, place = self._place(row)
        return store.read(place)

    def nbytes(self, row: int) -> int:
        store, place = self._place(row)
        return store.nbytes(place)

    def content(self, row: int) -> int:
        store, place = self._place(row)
        return store.content(place)

    def alone(self, row: int) -> tuple[Store, int]:
        store, place = self._place(row)
        return store.alone(place)


def alone(images: ImageSet) -> ImageSet:
    """Return the same images, without captions, on a store that holds no others."""
    rows = np.arange(len(images), dtype=np.int64)
    return replace(images, store=Gathered([images]), rows=rows, captions=None)


def moved(images: ImageSet, to: ImageSet) -> ImageSet:
    """Return images as read from ``to``, which has them in the same order. Those in main memory stay there,
    and all stay where they are if ``to`` has another number of images."""
    if len(images) != len(to):
        return images
    store = Gathered([images, to])
    rows = np.arange(len(images), dtype=np.int64)
    elsewhere = np.array([not isinstance(store.alone(row)[0], Encoded) for row in rows.tolist()], dtype=bool)
    return replace(images, store=store, rows=rows + len(images) * elsewhere, captions=None)


def gather(sets: Sequence[ImageSet], conflicts: bool = False) -> tuple[list[ImageSet], dict[str, str]]:
    """Return the sets on one store, so that they can be added, with ids of their images' content and without captions.

    Within a set the first of equal images stays. Files that cannot be read are left out.

    Args:
        conflicts: in the first set the first of equal images stays for each label, so that conflicting labels are seen.

    Returns:
        the sets, and path -> reason for what was left out as unreadable.
    """
    store, skipped = Gathered(sets), dict[str, str]()
    made, start = [], 0
    for part in sets:
        rows, ids = np.arange(start, start + len(part), dtype=np.int64), np.zeros(len(part), dtype=np.int64)
        kept, seen = np.zeros(len(part), dtype=bool), set[tuple[int, int]]()
        labels = part.labels if conflicts and part is sets[0] else np.zeros_like(part.labels)
        for place, row in enumerate(rows.tolist()):
            try:
                ids[place] = content_id(store.read(row))
            except OSError as error:
                skipped[store.keys[row]] = error.strerror or str(error)
                continue
            image = int(ids[place]), int(labels[place])
            kept[place] = image not in seen
            seen.add(image)
        made.append(replace(part, store=store, rows=rows, ids=ids, captions=None).select(kept))
        start += len(part)
    return made, skipped
