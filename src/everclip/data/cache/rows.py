"""Store rows of numbers by image and view: in memory, in a file that vanishes with the run, or in one that runs share.

A file is read and written by position rather than mapped: the system keeps its pages in memory all the same, and a full
disk raises an error instead of killing the process.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from everclip.errors import RunError

Key = tuple[int, int, int]
"""Id of an image, its view (0 is the plain picture), and a hash of its content, 0 where only one run has the rows. Runs
that share rows may find different images under the same id: each image then has a row of its own."""

LARGEST = 2.0**15
"""Rows with larger values are kept divided by a power of two: fp16 ends at 65504."""
RECORD = np.dtype([("id", "<i8"), ("view", "<i4"), ("scale", "<f4"), ("content", "<u8"), ("sum", "<u4")])
"""An entry of a shared file's index: which row a slot holds, its scale, and a checksum of all that and the row."""


class Rows(ABC):
    """Rows of one shape.

    Args:
        shape: of a row.
        exact: fp32; else fp16, where a row with large values has a power of two as its scale, so that none overflows.
    """

    at_hand: ClassVar[bool] = False
    """Whether they are in main memory, so that reading ahead would gain nothing."""

    def __init__(self, shape: Sequence[int], exact: bool) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(np.float32 if exact else np.float16)
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
        self._places: dict[Key, tuple[Any, ...]] = {}  # a row or its slot, then its scale

    def __len__(self) -> int:
        """Return the number of rows that can be read."""
        return len(self._places)

    def has(self, key: Key) -> bool:
        """Return whether there is a row."""
        return key in self._places

    @abstractmethod
    def _get(self, keys: Sequence[Key], places: Sequence[tuple[Any, ...]]) -> NDArray[Any]:
        """Return rows ``[n, numbers]`` from their places."""

    @abstractmethod
    def _put(self, keys: Sequence[Key], rows: NDArray[Any], scales: NDArray[np.float32]) -> None:
        """Keep rows."""

    @abstractmethod
    def drop(self, ids: Collection[int]) -> None:
        """Drop all rows of some images, where only this run has them."""

    @contextmanager
    def filling(self) -> Iterator[None]:
        """While open, only this process writes, and it knows what others have written."""
        yield

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return len(self) * self.row_bytes

    def read(self, keys: Sequence[Key]) -> Float[Tensor, "n ..."]:
        """Return rows in the order of ``keys``: as they are kept, in fp32 where one of them has a scale."""
        places = [self._places[key] for key in keys]
        values = torch.from_numpy(self._get(keys, places)).view(len(keys), *self.shape)
        scales = np.array([place[1] for place in places], dtype=np.float32)
        if np.all(scales == 1):
            return values
        return values.float() * torch.from_numpy(scales).view(-1, *[1] * len(self.shape))

    def write(self, keys: Sequence[Key], values: Float32[Tensor, "n ..."]) -> None:
        """Keep rows."""
        flat = values.reshape(len(keys), -1).numpy()
        scales = np.ones(len(keys), dtype=np.float32)
        if self.dtype == np.float16 and len(keys):
            top = np.abs(flat).max(axis=1)
            large = np.isfinite(top) & (top > LARGEST)
            scales[large] = 2.0 ** np.ceil(np.log2(top[large] / LARGEST))
            flat = flat / scales[:, None]
        with np.errstate(over="ignore"):  # what is infinite stays so, and the loss will tell
            self._put(keys, flat.astype(self.dtype), scales)


class Memory(Rows):
    """Rows in main memory."""

    at_hand = True

    def _get(self, keys: Sequence[Key], places: Sequence[tuple[Any, ...]]) -> NDArray[Any]:
        rows = np.empty((len(keys), math.prod(self.shape)), dtype=self.dtype)
        for number, (row, _) in enumerate(places):
            rows[number] = row
        return rows

    def _put(self, keys: Sequence[Key], rows: NDArray[Any], scales: NDArray[np.float32]) -> None:
        for key, row, scale in zip(keys, rows, scales, strict=True):
            self._places[key] = (row.copy(), scale)

    def drop(self, ids: Collection[int]) -> None:
        gone = set(ids)
        self._places = {key: row for key, row in self._places.items() if key[0] not in gone}


class Spilled(Rows):
    """Rows in an unnamed file, which vanishes when the process ends; slots of dropped rows are reused.

    Args:
        folder: where the file is made.
    """

    def __init__(self, shape: Sequence[int], exact: bool, folder: Path) -> None:
        super().__init__(shape, exact)
        self._file, name = tempfile.mkstemp(dir=folder)
        weakref.finalize(self, os.close, self._file)
        os.unlink(name)
        self._free: list[int] = []

    def _get(self, keys: Sequence[Key], places: Sequence[tuple[Any, ...]]) -> NDArray[Any]:
        return _read(self._file, [slot for slot, _ in places], self)

    def _put(self, keys: Sequence[Key], rows: NDArray[Any], scales: NDArray[np.float32]) -> None:
        for key, row, scale in zip(keys, rows, scales, strict=True):
            slot, _ = self._places.get(key, (-1, scale))
            if slot < 0:
                slot = self._free.pop() if self._free else len(self._places)
            _write(self._file, slot * self.row_bytes, row)
            self._places[key] = (slot, scale)

    def drop(self, ids: Collection[int]) -> None:
        gone = set(ids)
        for key in [key for key in self._places if key[0] in gone]:
            self._free.append(self._places.pop(key)[0])


class Shared(Rows):
    """Rows in a folder that any number of processes fill and read; no row is ever removed.

    ``rows.bin`` holds them slot by slot, ``index.bin`` one record per slot, a later one replacing an earlier one of the
    same key. A writer holds the lock, and writes records only once the rows are on the disk. If a writer is killed, its
    rows without a record are overwritten, and an incomplete record is cut off.

    Args:
        folder: is created if it is missing.
        about: what the rows are, for a reader; the folder's name has to identify all that they depend on.
    """

    def __init__(self, shape: Sequence[int], exact: bool, folder: Path, about: dict[str, Any]) -> None:
        super().__init__(shape, exact)
        self.folder = folder
        self._lock = FileLock(folder / "lock")
        self._known = 0
        with self._named():
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                if not (folder / "about.json").exists():
                    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            self._rows, self._index = (
                os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in ("rows.bin", "index.bin")
            )
            for file in (self._rows, self._index):
                weakref.finalize(self, os.close, file)
            self._learn()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn an error of the disk into a RunError that names this folder, and not the run's."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be written ({error.strerror}): make room, or set EVERCLIP_CACHE to a"
                " folder of your own on a disk with room; everclip resume goes on"
            ) from error

    @contextmanager
    def filling(self) -> Iterator[None]:
        with ExitStack() as held:
            with self._named():
                held.enter_context(self._lock)
                self._learn()
                os.ftruncate(self._index, self._known * RECORD.itemsize)
            yield

    def _learn(self) -> None:
        """Read the records written since the last call."""
        whole = os.fstat(self._rows).st_size // self.row_bytes
        there = min(os.fstat(self._index).st_size // RECORD.itemsize, whole)
        start, size = self._known * RECORD.itemsize, (there - self._known) * RECORD.itemsize
        fresh = np.frombuffer(os.pread(self._index, max(0, size), start), dtype=RECORD)
        for slot, record in enumerate(fresh, self._known):
            key = int(record["id"]), int(record["view"]), int(record["content"])
            self._places[key] = slot, record["scale"], int(record["sum"])
        self._known += len(fresh)

    def _get(self, keys: Sequence[Key], places: Sequence[tuple[Any, ...]]) -> NDArray[Any]:
        rows = _read(self._rows, [place[0] for place in places], self)
        for key, row, (_, scale, checksum) in zip(keys, rows, places, strict=True):
            if _checksum(key, row, scale) != checksum:
                raise RunError(f"{self.folder} holds a damaged row: remove it, and everclip resume goes on")
        return rows

    def _put(self, keys: Sequence[Key], rows: NDArray[Any], scales: NDArray[np.float32]) -> None:
        assert self._lock.is_locked, "rows are shared: they are written inside of filling()"
        columns = zip(keys, rows, scales, strict=True)
        records = np.array(
            [(*key[:2], scale, key[2], _checksum(key, row, scale)) for key, row, scale in columns],
            dtype=RECORD,
        )
        with self._named():
            _write(self._rows, self._known * self.row_bytes, rows)
            os.fsync(self._rows)
            _write(self._index, self._known * RECORD.itemsize, records)
            os.fsync(self._index)
        self._learn()

    def drop(self, ids: Collection[int]) -> None:
        """Do nothing: another run may read them."""


def _checksum(key: Key, row: NDArray[Any], scale: np.float32) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(struct.pack("<qiQf", *key, scale)))


def _read(file: int, slots: Sequence[int], rows: Rows) -> NDArray[Any]:
    """Return the rows in these slots. Raises RunError where the file was cut."""
    found = np.empty((len(slots), math.prod(rows.shape)), dtype=rows.dtype)
    for place, slot in enumerate(slots):
        content = os.pread(file, rows.row_bytes, slot * rows.row_bytes)
        if len(content) < rows.row_bytes:
            raise RunError("a file of kept activations was cut while it was in use: everclip resume goes on")
        found[place] = np.frombuffer(content, dtype=rows.dtype)
    return found


def _write(file: int, offset: int, values: NDArray[Any]) -> None:
    content = memoryview(values.tobytes())
    while len(content):
        done = os.pwrite(file, content, offset)
        content, offset = content[done:], offset + done
