"""Record what the images of a run are, and find later what has changed.

For each image it has the path, class, domain, task and part, size, and a stamp of the file that holds it (time of
change and inode; the checksum in a zip archive). For as many images as fit into ``BUDGET`` bytes it also has a hash of
the content: first for those that share their size with one of the other part, which may be the same picture, then for a
random sample of the rest.

An image of the same size and stamp counts as unchanged without being read. A different stamp alone is no change, as a
data set may have been copied: then the content decides, where its hash is known; else the size, and whether the others
were copied too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everclip.data.images import Store
from everclip.data.scenario import Task
from everclip.system.arrays import Shape, read_arrays
from everclip.system.reading import MIB, Unreadable, parse_json

BUDGET = 1 << 30
"""Bytes of images that are read to hash them, when a run begins."""
MOST_LOADED = 1 << 30
"""Bytes that the paths, or the columns, may take in memory."""
UNREAD, UNREADABLE = -1, -2
"""In place of a content's hash: not computed; could not be computed."""
_COLUMNS = ("places", "labels", "domains", "sizes", "stamps", "contents")
_ARRAYS = {
    "keys": Shape("u", (MOST_LOADED,), 1),
    "columns": Shape("i", (len(_COLUMNS), MOST_LOADED // (8 * len(_COLUMNS)))),
    "changed": Shape("u", (MIB,), 1),
}
"""The arrays of a file."""

Column = NDArray[np.int64]
Step = Callable[[int], object]


def silent(done: int) -> None:
    """Report no progress, where nobody wants to know."""


@dataclass(frozen=True, eq=False)
class Inventory:
    """Images as columns, task after task, training images before test images.

    Args:
        keys: paths relative to the data's root.
        places: twice the task's index, plus one for a test image.
        labels, domains: as in ImageSet.
        sizes, stamps: as ``Store.stamp`` gives them; a stamp of -1 where there is none.
        contents: ``Store.content``, ``UNREAD`` or ``UNREADABLE``.
        changed: what differed when the run continued with --changed-data: "images", how many, and the "first" of them.
    """

    keys: list[str]
    places: Column
    labels: Column
    domains: Column
    sizes: Column
    stamps: Column
    contents: Column
    changed: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_test(self) -> NDArray[np.bool_]:
        """A truth value per image: whether it is a test image."""
        return self.places % 2 == 1

    def twins(self) -> NDArray[np.bool_]:
        """Return the images that share their size with an image of the other part."""
        train, test = (np.unique(self.sizes[self.is_test == part]) for part in (False, True))
        return np.isin(self.sizes, np.intersect1d(train, test)) & (self.contents != UNREADABLE)

    def duplicates(self) -> int | None:
        """Count test images that are training images too; None where there are too many bytes to tell."""
        twins = self.twins()
        if (self.contents[twins] == UNREAD).any():
            return None
        test, train = (self.contents[twins & (self.is_test == part)] for part in (True, False))
        return int(np.isin(test, train).sum())

    def copies(self) -> int | None:
        """Count training images that repeat another one byte for byte; None where not all contents are known."""
        content = self.contents[~self.is_test & (self.contents != UNREADABLE)]
        return None if (content == UNREAD).any() else len(content) - len(np.unique(content))

    def learned(self, tasks: int) -> Inventory:
        """Return the training images of the first tasks whose content is known."""
        return self.select(~self.is_test & (self.places < 2 * tasks) & (self.contents >= 0))

    def select(self, which: NDArray[np.bool_] | Column) -> Inventory:
        """Return the rows at ``which``, a mask or positions."""
        places = np.flatnonzero(which) if which.dtype == bool else which
        columns = {name: getattr(self, name)[places] for name in _COLUMNS}
        return replace(self, keys=[self.keys[place] for place in places.tolist()], **columns)

    def packed(self) -> bytes:
        """Return the inventory as a file's content."""
        content = io.BytesIO()
        keys = "\0".join(self.keys).encode("utf-8", "surrogatepass")
        np.savez_compressed(
            content,
            keys=np.frombuffer(keys, dtype=np.uint8),
            columns=np.stack([getattr(self, name) for name in _COLUMNS]),
            changed=np.frombuffer(json.dumps(self.changed).encode(), dtype=np.uint8),
        )
        return content.getvalue()

    @classmethod
    def read(cls, path: Path) -> Inventory:
        """Read it from a file. Raises Unreadable where it is damaged."""
        found = read_arrays(path, _ARRAYS, {}, MOST_LOADED)
        content, changed = (found[name].tobytes() for name in ("keys", "changed"))
        rows = found["columns"].shape[1]
        if content.count(b"\0") != max(0, rows - 1) or len(found["columns"]) != len(_COLUMNS):
            raise Unreadable("columns of several lengths")
        try:
            names = content.decode("utf-8", "surrogatepass").split("\0") if rows else []
        except UnicodeDecodeError as error:
            raise Unreadable("keys are not text") from error
        columns = dict(zip(_COLUMNS, found["columns"].astype(np.int64), strict=True))
        noted = cls(names, **columns, changed=parse_json(changed))
        if not isinstance(noted.changed, dict | None):
            raise Unreadable("what has changed is not an object")
        return noted


def of(tasks: Sequence[Task], store: Store) -> Inventory:
    """Return the images of tasks, with stamps alone."""
    sets = [part for task in tasks for part in (task.train, task.test)]
    labels, domains = (
        np.concatenate([getattr(part, name) for part in sets]) for name in ("labels", "domains")
    )
    rows = _rows(tasks)
    places = np.repeat(np.arange(len(sets), dtype=np.int64), [len(part) for part in sets])
    sizes, stamps = np.zeros_like(rows), np.full_like(rows, -1)
    taken = np.full_like(rows, UNREAD)
    for place, row in enumerate(rows.tolist()):
        try:
            stamp = store.stamp(row)
        except OSError:
            taken[place] = UNREADABLE
            continue
        sizes[place], stamps[place] = (store.nbytes(row), -1) if stamp is None else stamp
    keys = [str(store.keys[row]).replace("\0", "\ufffd") for row in rows.tolist()]
    return Inventory(keys, places, labels, domains, sizes, stamps, taken)


def hashed(noted: Inventory, tasks: Sequence[Task], store: Store, step: Step = silent) -> Inventory:
    """Return the same with as many contents as ``BUDGET`` allows; ``step`` is told how many more were looked at."""
    order = np.lexsort([np.random.default_rng(0).permutation(len(noted)), ~noted.twins()])
    order = order[noted.contents[order] == UNREAD]
    chosen = np.sort(order[np.cumsum(noted.sizes[order]) <= BUDGET])
    taken = noted.contents.copy()
    taken[chosen] = contents(_rows(tasks)[chosen], store.content, step)
    step(len(noted) - len(chosen))
    return replace(noted, contents=taken)


def _rows(tasks: Sequence[Task]) -> Column:
    """Return the images' rows in their store."""
    return np.concatenate([part.rows for task in tasks for part in (task.train, task.test)])


def contents(rows: Column, content: Callable[[int], int], step: Step = silent) -> Column:
    """Return what ``content`` says of each row, several at once; ``UNREADABLE`` where it raises OSError."""

    def take(some: Column) -> list[int]:
        found = []
        for row in some.tolist():
            try:
                found.append(content(row))
            except OSError:
                found.append(UNREADABLE)
        return found

    taken: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        for some in pool.map(take, np.array_split(rows, -(-len(rows) // 128) or 1)):
            taken += some
            step(len(some))
    return np.array(taken, dtype=np.int64)


@dataclass(frozen=True)
class Change:
    """A difference: how many images differ, the first of them, and what is different."""

    images: int
    first: str
    what: str

    def words(self, data: str, whose: str, total: int) -> str:
        """Return the change in words, for a message."""
        return (
            f"{data} is not what it was when {whose} began: {self.images} of {total} images differ, such as"
            f" {self.first} ({self.what})"
        )


def compare(before: Inventory, tasks: Sequence[Task], store: Store) -> tuple[Change | None, Inventory]:
    """Find what has changed since, and return the images as they are now with the contents that are known of them."""
    now = of(tasks, store)
    if now.keys == before.keys:
        then = np.arange(len(now))
    else:
        place = {key: row for row, key in enumerate(before.keys)}
        then = np.array([place.get(key, -1) for key in now.keys], dtype=np.int64)
    here, was = np.flatnonzero(then >= 0), then[then >= 0]
    old, new = before.select(was), now.select(here)
    moved = (old.places != new.places) | (old.domains != new.domains)
    named = old.labels != new.labels
    rows = _rows(tasks)[here]
    now.contents[here], other = _other(old, new, lambda places: contents(rows[places], store.content))
    differing: dict[str, str] = {}
    gone = np.ones(len(before), dtype=bool)
    gone[was] = False
    for keys, which, what in (
        (before.keys, gone, "it is gone"),
        (now.keys, then < 0, "it is new"),
        (new.keys, named, "it has another class"),
        (new.keys, moved, "it is in another part or domain"),
        (new.keys, other, "it is another picture"),
    ):
        for row in np.flatnonzero(which).tolist():
            differing.setdefault(keys[row], what)
    now = replace(now, changed=before.changed)
    if not differing:
        return None, now
    first, what = next(iter(differing.items()))
    return Change(len(differing), first, what), now


def _other(
    old: Inventory, new: Inventory, take: Callable[[Column], Column]
) -> tuple[Column, NDArray[np.bool_]]:
    """Return the present contents of the same images, as far as they are known, and which of them differ."""
    known = old.contents >= 0
    doubtful = (old.sizes != new.sizes) | (old.stamps != new.stamps) | (new.stamps < 0)
    doubtful &= old.contents != UNREADABLE  # it was left out, and stays so
    taken = old.contents.copy()
    reread = np.flatnonzero(doubtful & known)
    taken[reread] = take(reread)
    other = known & (taken != old.contents)
    unknown = ~known & (old.contents != UNREADABLE)
    other |= unknown & (old.sizes != new.sizes)
    stamped = unknown & (new.stamps >= 0)  # of images in Arrow tables the sizes alone are known
    if (stamped & doubtful).sum() < stamped.sum():  # else all of them were copied, as the sizes say
        other |= stamped & doubtful
    return taken, other
