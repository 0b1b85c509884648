"""Hold a table of images, immutable (ImageSet), and the stores their bytes come from."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everclip.data.captions import Captions
from everclip.errors import UserError
from everclip.seeding import hash64

MOST_BYTES = 1 << 30
"""Largest size of an encoded image, which is read whole."""


class Store(ABC):
    """The place where encoded images lie. ``keys`` are paths relative to the store's root, one per row.

    Attributes:
        width: numbers per row, where rows are features as little-endian float32; None for images.
    """

    keys: Sequence[str]
    width: int | None = None

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the encoded file of a row. Raises OSError where it cannot be read."""

    @abstractmethod
    def nbytes(self, row: int) -> int:
        """Return the size of the encoded file in bytes; 0 where it cannot be read."""

    def stamp(self, row: int) -> tuple[int, int] | None:
        """Return the size of a row in bytes, and a number below 2^63 that changes when the file that holds it is
        rewritten, replaced or moved; None where only reading the row can tell. Raises OSError if there is none."""
        return None

    def content(self, row: int) -> int:
        """Return the ``content_id`` of a row. Raises OSError where it cannot be read."""
        return content_id(self.read(row))

    def alone(self, row: int) -> tuple[Store, int]:
        """Return a store that keeps no other row's content in memory, and the row there."""
        return self, row


def content_id(content: bytes) -> int:
    """Return a stable id from 0 to 2^63 - 1 of an encoded image, wherever its file lies and whatever its name."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Return ``Store.stamp`` of a file, from its time of change and its inode. Raises OSError."""
    found = os.stat(path)
    return found.st_size, (found.st_mtime_ns * 0x9E3779B97F4A7C15 + found.st_ino) % (1 << 63)


class FileStore(Store):
    """Image files under a folder."""

    def __init__(self, root: Path, keys: Sequence[str]) -> None:
        self.root = root
        self.keys = keys

    def read(self, row: int) -> bytes:
        path = self.root / self.keys[row]
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # a pipe would never end
            raise OSError("no file")
        if found.st_size > MOST_BYTES:
            raise OSError(f"too large: {found.st_size:,} bytes")
        return path.read_bytes()

    def nbytes(self, row: int) -> int:
        try:
            return (self.root / self.keys[row]).stat().st_size
        except OSError:
            return 0

    def stamp(self, row: int) -> tuple[int, int]:
        return file_stamp(os.path.join(self.root, self.keys[row]))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """An immutable table: one row per image.

    Args:
        store: where the encoded images lie.
        rows: int64 ``[n]``, the image's row in ``store``.
        labels: int64 ``[n]``, index into the data set's class names.
        domains: int64 ``[n]``, index into the data set's domain names.
        ids: int64 ``[n]``, stable over runs and machines: a hash of the path relative to the root. Estimators,
            exemplars and stored logits are keyed by it.
        captions: those of all rows of the store, where the images have captions; labels are then groups of them.
    """

    store: Store
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    ids: NDArray[np.int64]
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def spread(self, most: int) -> ImageSet:
        """Return at most so many of the images, at equal distances."""
        if not len(self):
            return self
        return self.select(np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64)))

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> ImageSet:
        """Return the rows at ``which``, a mask or positions, in that order."""
        return replace(
            self,
            rows=self.rows[which],
            labels=self.labels[which],
            domains=self.domains[which],
            ids=self.ids[which],
        )

    def of_classes(self, classes: Iterable[int]) -> ImageSet:
        """Return the images whose label is one of ``classes``."""
        return self.select(np.isin(self.labels, list(classes)))

    def of_domain(self, domain: int) -> ImageSet:
        """Return the images of one domain."""
        return self.select(self.domains == domain)

    def relabel(self, new: Sequence[int]) -> ImageSet:
        """Return the same images with label ``new[label]``."""
        return replace(self, labels=np.asarray(new, dtype=np.int64)[self.labels])

    def apart(self, share: float, purpose: str, most: int | None = None) -> tuple[ImageSet, ImageSet]:
        """Return the images in two parts, those that stay and those that are held out.

        Of each class in each domain ``share`` is held out, rounded, but at least one image, never all, and at
        most ``most``; of a single image none. Which ones depends on their ids and the purpose alone.
        """
        held = np.zeros(len(self), dtype=bool)
        priority = np.array([hash64(purpose, sample) for sample in self.ids.tolist()], dtype=np.int64)
        for where in self.kinds():
            count = min(max(1, round(share * len(where))), len(where) - 1)
            held[where[np.argsort(priority[where])[: count if most is None else min(count, most)]]] = True
        return self.select(~held), self.select(held)

    def kinds(self) -> list[NDArray[np.int64]]:
        """Return the positions of each class's images in each domain, in their order."""
        order = np.lexsort([self.domains, self.labels])  # keeps the order of equal ones
        changes = np.diff(self.labels[order]) | np.diff(self.domains[order])
        return np.split(order, np.flatnonzero(changes) + 1) if len(self) else []

    def __add__(self, other: ImageSet) -> ImageSet:
        """Return both tables, this one first. They must share a store."""
        return joined([self, other])

    def samples(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample ids of some of these images: their own, or those of their pairs with all their captions."""
        if self.captions is None:
            return ids
        found = self.select(np.isin(self.ids, ids))
        return self.captions.pairs_of(found.rows, found.ids)

    def counts(self, classes: int) -> NDArray[np.int64]:
        """Return int64 ``[classes]``: the number of images of each class."""
        return np.bincount(self.labels, minlength=classes)

    def nbytes(self) -> int:
        """Return bytes of the encoded images."""
        return sum(self.store.nbytes(int(row)) for row in self.rows)


def sample_ids(keys: Sequence[str]) -> NDArray[np.int64]:
    """Return int64 ``[n]``: stable ids of the images at these relative paths. Raises UserError where two collide."""
    ids = np.array([hash64(key) for key in keys], dtype=np.int64)
    values, first, count = np.unique(ids, return_index=True, return_counts=True)
    if len(values) < len(ids):
        key = keys[int(first[count > 1][0])]
        raise UserError(f'two images have the id of "{key}": list each image once, or rename one file')
    return ids


def joined(sets: Iterable[ImageSet]) -> ImageSet:
    """Return the rows of several tables, which share a store, as one."""
    first, *others = sets = [*sets]
    assert all(other.store is first.store for other in others)
    columns = {name: [getattr(one, name) for one in sets] for name in ("rows", "labels", "domains", "ids")}
    return replace(first, **{name: np.concatenate(parts) for name, parts in columns.items()})


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set of images with a training and a test part.

    Args:
        name: the spec it was loaded from, for example ``imagefolder:/data/birds``.
        class_names: readable names, index = label.
        domain_names: names, index = domain; length 1 where there are no domains. Their order is the order learned.
        templates: prompts with ``{}`` for the class name, which make the class embeddings; none for features that come
            without text.
        held_out: the test part was cut from the images here; a source that comes with its own has False.
        times: float64 by row of the store: when each image was taken; None where that is not known or not asked for.
    """

    name: str
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    templates: tuple[str, ...]
    held_out: bool = False
    times: NDArray[np.float64] | None = None

    @property
    def captioned(self) -> bool:
        """Whether its images have captions of their own, in place of classes."""
        return self.train.captions is not None

    def words(self) -> str:
        """Return how the data set was read, on one line."""
        domains = f" in {len(self.domain_names)} domains" if len(self.domain_names) > 1 else ""
        held = " (a fifth of each class, as there is no test part)" if self.held_out else ""
        if self.train.captions is not None:
            counts = [int(self.train.captions.count(part.rows).sum()) for part in (self.train, self.test)]
            groups = f", {len(self.class_names)} groups" if len(self.class_names) > 1 else ""
            tasks = f", {len(self.domain_names)} tasks" if len(self.domain_names) > 1 else ""
            held = " (a fifth, as there is no test part)" if self.held_out else ""
            return (
                f"{self.name}: {len(self.train)} training images with {counts[0]} captions, {len(self.test)} test"
                f" images with {counts[1]}{groups}{tasks}{held}"
            )
        return (
            f"{self.name}: {len(self.class_names)} classes{domains}, {len(self.train)} training images,"
            f" {len(self.test)} test images{held}"
        )

    def whole(self) -> ImageSet:
        """Return the images to test on where the data set is given for that: its test part, or all of a bare folder."""
        return self.train + self.test if self.held_out else self.test


def build(
    name: str,
    store: Store,
    labels: Sequence[int],
    domains: Sequence[int],
    is_test: Sequence[bool],
    class_names: Sequence[str],
    domain_names: Sequence[str],
    templates: Sequence[str],
    held_out: bool = False,
    captions: Captions | None = None,
    times: NDArray[np.float64] | None = None,
) -> Dataset:
    """Return a Dataset from columns as long as ``store.keys``. Raises UserError where two keys collide."""
    every = ImageSet(
        store,
        rows=np.arange(len(store.keys), dtype=np.int64),
        labels=np.asarray(labels, dtype=np.int64),
        domains=np.asarray(domains, dtype=np.int64),
        ids=sample_ids(store.keys),
        captions=captions,
    )
    test = np.asarray(is_test, dtype=bool)
    return Dataset(
        name,
        tuple(class_names),
        tuple(domain_names),
        every.select(~test),
        every.select(test),
        tuple(templates),
        held_out,
        times,
    )
