"""A task of a stream, and the orders and sizes that scenarios cut a data set by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everclip.data.images import Dataset, ImageSet, joined
from everclip.data.prompts import clean
from everclip.errors import UserError, suggest
from everclip.seeding import generator, hash64

MOST_HINT = 80
"""Characters of a list of names in a message; a data set may have thousands."""

# fmt: off
ICARL = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24, 32, 45, 88, 11, 4, 67,
    69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20, 80, 73, 1, 28, 6, 46, 62, 82, 53, 9, 31, 75,
    38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89, 43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56, 48, 71, 64,
    98, 13, 99, 7, 34, 55, 54, 26, 35, 39,
)
# fmt: on
"""The order of CIFAR-100's classes in iCaRL, PODNet, DyTox and Continual-CLIP: no permutation of a seed alone."""


@dataclass(frozen=True, eq=False)
class Task:
    """One step of a stream. Tasks need not have classes of their own: a class may come again in any later one.

    Args:
        index: 0-based.
        classes: labels of the training images; those that no earlier task has are in the order learned.
        train: its training images.
        test: the test images that are scored from this task on: a column of the accuracy matrix. No image is in two
            columns; every task but the first may have none.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    train: ImageSet
    test: ImageSet


def seen(tasks: Sequence[Task]) -> tuple[int, ...]:
    """Return the labels of these tasks, each once, in the order learned."""
    return tuple(dict.fromkeys(label for task in tasks for label in task.classes))


def class_order(names: Sequence[str], order: int | str | Sequence[str]) -> list[int]:
    """Return the labels in the order learned.

    Raises UserError where names are not a permutation, or "icarl" is used for other than 100 classes.

    Args:
        names: class names, index = label.
        order: a seed of numpy's legacy generator (1993 is the field's: ``RandomState(1993).permutation(n)``, as in
            PyCIL and UCIR), ``"icarl"`` (of 100 classes), ``"given"``, or the class names (or their folders')
            themselves in order.
    """
    if isinstance(order, int):
        return np.random.RandomState(order).permutation(len(names)).tolist()
    if order == "icarl":
        if len(names) != len(ICARL):
            raise UserError(
                f'scenario.order=icarl is for 100 classes, not {len(names)}: use a seed, "given" or the names'
            )
        return list(ICARL)
    if isinstance(order, str):
        return list(range(len(names)))
    return positions(order, names, "class")


def learned_order(names: Sequence[str], order: int | str | Sequence[str], seed: int) -> list[int]:
    """Return ``class_order`` by ``scenario.order``, or by the run's ``seed`` where it is "seed". Raises UserError."""
    return class_order(names, seed if order == "seed" else order)


def first_by_hash(images: ImageSet, word: str, counts: Mapping[int, int]) -> ImageSet:
    """Return at most ``counts[label]`` images of each class, in the order they have: those with the smallest hashes.

    Args:
        word: begins what is hashed; the stable id of the image follows.
    """
    priority = np.array([hash64(word, sample) for sample in images.ids.tolist()], dtype=np.int64)
    kept = np.zeros(len(images), dtype=bool)
    for label, count in counts.items():
        where = np.flatnonzero(images.labels == label)
        kept[where[np.argsort(priority[where])[:count]]] = True
    return images.select(kept)


def positions(order: Sequence[str], names: Sequence[str], what: str) -> list[int]:
    """Return the index of each entry of ``order``, a name or its folder's. Raises UserError for no permutation."""
    place = {name: index for index, name in enumerate(names)}
    order = [clean(name) if name not in place and clean(name) in place else name for name in order]
    twice = [name for name, count in Counter(order).items() if count > 1]
    if twice:
        raise UserError(f'scenario.order names the {what} "{twice[0]}" twice: name each {what} once')
    unknown = [name for name in order if name not in place]
    if unknown:
        hint = suggest(unknown[0], names)
        if len(hint) > MOST_HINT:
            hint = f'; use names such as "{names[0]}"'
        raise UserError(f'scenario.order names the unknown {what} "{unknown[0]}"{hint}')
    listed = {*order}
    missing = [name for name in names if name not in listed]
    if missing:
        raise UserError(f'scenario.order leaves out the {what} "{missing[0]}": name each {what} once')
    return [place[name] for name in order]


def task_sizes(classes: int, tasks: int | Sequence[int]) -> list[int]:
    """Return classes per task: as even as can be with the larger tasks first, or the sizes as given. Raises UserError
    where they do not fit the number of classes."""
    if isinstance(tasks, int):
        if tasks > classes:
            raise UserError(f"scenario.tasks={tasks} but there are {classes} classes: use at most {classes}")
        return [classes // tasks + (index < classes % tasks) for index in range(tasks)]
    if sum(tasks) != classes:
        raise UserError(f"scenario.tasks={list(tasks)} adds up to {sum(tasks)} classes: make it {classes}")
    return list(tasks)


def first_met(parts: Sequence[ImageSet], test: ImageSet, names: Sequence[str]) -> list[Task]:
    """Return tasks of training images in the order given; test images of a class go to the first task that has the
    class.

    Classes that are new in the same task are in the order of their labels.

    Args:
        names: of the tasks.
    """
    tasks: list[Task] = []
    known: set[int] = set()
    for index, (train, name) in enumerate(zip(parts, names, strict=True)):
        classes = np.unique(train.labels).tolist()
        new = [label for label in classes if label not in known]
        known |= set(new)
        tasks.append(Task(index, name, tuple(classes), train, test.of_classes(new)))
    return tasks


def by_time(data: Dataset, count: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Cut the training images, in the order of their times, into ``count`` parts of equally many.

    Returns:
        positions of each part's training images; and int64 ``[n]``, the part of each test image: the first that ends
        at its time or later, else the last.
    """
    assert data.times is not None
    times = data.times[data.train.rows]
    order = np.lexsort([data.train.ids, times])  # equal times are ordered by id, not as in the data
    parts = np.array_split(order, count)
    ends = [times[part].max() for part in parts[:-1]]
    return parts, np.searchsorted(ends, data.times[data.test.rows])


def in_pieces(tasks: Sequence[Task], every: int, seed: int) -> list[Task]:
    """Return each task's training images in a random order, cut into pieces of ``every`` images, each a task.

    There are as many pieces as it has images over ``every``, rounded (a half to the even number), but at least one; the
    last takes what is left.
    """
    parts, names = [], []
    for task in tasks:
        order = generator(seed, "stream", task.index).permutation(len(task.train))
        count = max(1, round(len(order) / every))
        cuts = [every * piece for piece in range(1, count)]
        for number, part in enumerate(np.split(order, cuts)):
            parts.append(task.train.select(part))
            names.append(f"{task.name}, piece {number + 1}")
    return first_met(parts, joined(task.test for task in tasks), names)


def stream_seed(order: int | str | Sequence[str], seed: int) -> int:
    """Return the seed for what a stream draws: that of the order of classes, so that runs with several seeds learn the
    same stream, unless ``scenario.order=seed`` asks for several streams.

    Args:
        order: ``scenario.order``.
        seed: the run's.
    """
    return seed if order == "seed" else order if isinstance(order, int) else 0


def merge(tasks: Sequence[Task]) -> list[Task]:
    """Return all tasks as one: the scenario of joint training, on the same images and classes."""
    train, test = joined(task.train for task in tasks), joined(task.test for task in tasks)
    return [Task(0, "all tasks", seen(tasks), train, test)]
