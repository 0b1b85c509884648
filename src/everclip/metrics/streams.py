"""Compute measures of streams: macro accuracy, the area over a stream, groups by frequency, transfer.

All accuracies are fractions in 0..1; None where nothing was tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

GROUPS = ("many", "medium", "few")
"""Classes by their training images (Liu et al. 2019, https://arxiv.org/abs/1904.05160)."""


class Group(NamedTuple):
    """How many classes of a group were tested, and the mean of their accuracies."""

    classes: int
    accuracy: float | None


class Transfer(NamedTuple):
    """ZSCL's three numbers (Zheng et al. 2023, https://arxiv.org/abs/2303.06628), means over tasks, each counted alike.

    Args:
        transfer: before a task is learned; None with one task.
        average: over all stages.
        last: after the last stage.
    """

    transfer: float | None
    average: float
    last: float


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None without values. Over class accuracies it is macro accuracy: each class counts equally."""
    return sum(values) / len(values) if values else None


def area(accuracies: Sequence[float], images: Sequence[int]) -> float:
    """Return the area under the accuracy over the images that have passed, as a fraction of what 1 throughout would
    give.

        A_AUC = sum_i f(i) n_i / sum_i n_i      (Koh et al. 2022, https://arxiv.org/abs/2110.10031, with its fixed n)

    Args:
        accuracies: f, on all classes seen, after each test.
        images: n, training images that have passed since the test before.
    """
    return sum(a * n for a, n in zip(accuracies, images, strict=True)) / sum(images)


def by_frequency(
    accuracies: Mapping[int, float], images: Mapping[int, int], many: int, few: int
) -> dict[str, Group]:
    """Return the groups of classes with more than ``many`` training images, fewer than ``few``, and those between.

    Args:
        accuracies: of each class by its label.
        images: training images of each class.
    """

    def group(count: int) -> str:
        return "many" if count > many else "few" if count < few else "medium"

    found = {name: [a for label, a in accuracies.items() if group(images[label]) == name] for name in GROUPS}
    return {name: Group(len(values), mean(values)) for name, values in found.items()}


def transfer(matrix: Sequence[Sequence[float | None]]) -> Transfer:
    """Return ZSCL's three numbers of a whole matrix.

    Args:
        matrix: T x T, row i after task i, column j the accuracy on task j, learned or not; a column of None, of a task
            without test images, is left out.
    """
    tasks = range(len(matrix))
    columns = [[row[task] for row in matrix] for task in tasks]
    known = [(task, [v for v in column if v is not None]) for task, column in enumerate(columns)]
    known = [(task, column) for task, column in known if len(column) == len(matrix)]
    before = [sum(column[:task]) / task for task, column in known if task]
    return Transfer(
        mean(before),
        sum(sum(column) / len(column) for _, column in known) / len(known),
        sum(column[-1] for _, column in known) / len(known),
    )
