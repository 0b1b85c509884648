"""Share a budget: equally among classes and their domains, or among tasks by weights. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from everclip.data.policies._base import Pool
from everclip.seeding import hash64


def per_class(pool: Pool, priority: NDArray[np.float64], fill: bool = False) -> NDArray[np.int64]:
    """Return positions of each class's quota, shared equally by the domains that the class has images of.

    A remainder goes to the domains that come first in a fixed random order of the class.

    Args:
        priority: ``[n]``; within a class and domain the lowest are chosen.
        fill: whether the part of its share that a domain cannot fill goes to the others; else it stays unused.
    """
    labels, domains = pool.images.labels, pool.images.domains
    chosen = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(labels):
        of_class = labels == label
        shared = sorted(
            np.unique(domains[of_class]).tolist(),
            key=lambda domain, label=label: hash64("domain", pool.seed, label, domain),
        )
        members = [np.flatnonzero(of_class & (domains == domain)) for domain in shared]
        most = [len(where) if fill else pool.quota for where in members]
        for where, share in zip(members, dealt(pool.quota, most), strict=True):
            chosen.append(where[np.argsort(priority[where], kind="stable")[:share]])
    return np.concatenate(chosen)


def dealt(total: int, owned: Sequence[int]) -> list[int]:
    """Deal ``total`` exemplars one by one, in turn, to domains as long as they have images, the first ones first.

    No share grows when domains are added, so that dropped images are never needed again.
    """
    given, left = [0] * len(owned), min(total, sum(owned))
    while left:
        open_ = [place for place, count in enumerate(owned) if given[place] < count]
        for place in open_[:left]:
            given[place] += min(max(1, left // len(open_)), owned[place] - given[place])
        left = min(total, sum(owned)) - sum(given)
    return given


def per_task(pool: Pool, weights: Sequence[Fraction]) -> NDArray[np.int64]:
    """Return positions of each task's share of the budget, within it equally many per class, those with the lowest
    priority.

    Args:
        weights: of the tasks, as in ``shares``.
    """
    members = [np.flatnonzero(pool.task == number) for number in range(pool.tasks)]
    counts = shares(pool.budget, [len(part) for part in members], weights)
    parts = [
        part[spread(pool.images.labels[part], pool.priority[part], count)]
        for part, count in zip(members, counts, strict=True)
    ]
    return np.concatenate(parts)


def shares(budget: int, owned: Sequence[int], weights: Sequence[Fraction]) -> list[int]:
    """Share ``budget`` exemplars among the finished tasks, in proportion to weights.

    Whole numbers by largest remainder, ties to the newer task. A task that owns fewer images than its share gives all
    it has, and the rest is spread over the others in proportion.

    Args:
        owned: images that each task has, oldest first.
        weights: above 0, of each task.
    """
    count = len(owned)
    given = [0] * count
    open_ = [step for step in range(count) if owned[step]]
    left = min(budget, sum(owned))
    while left and open_:
        part = _largest_remainder(left, [weights[step] for step in open_])
        full = [step for step, n in zip(open_, part, strict=True) if n >= owned[step]]
        if not full:
            for step, n in zip(open_, part, strict=True):
                given[step] = n
            break
        for step in full:
            given[step] = owned[step]
            left -= owned[step]
            open_.remove(step)
    return given


def _largest_remainder(total: int, weights: Sequence[Fraction]) -> list[int]:
    every = sum(weights)
    exact = [total * weight / every for weight in weights]
    whole = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (exact[i] - whole[i], i), reverse=True)
    for i in order[: total - sum(whole)]:
        whole[i] += 1
    return whole


def spread(labels: NDArray[np.int64], priority: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return positions of ``count`` rows, as evenly per label as possible, those with the lowest priority first.

    Nested: a smaller count chooses among the rows of a larger one.
    """
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where[np.argsort(priority[where], kind="stable")]] = np.arange(len(where))
    return np.sort(np.lexsort((priority, rank))[:count])
