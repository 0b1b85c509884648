"""Choose exemplars: herding, and shares for earlier tasks. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def herding(features: Float[np.ndarray, "n d"]) -> NDArray[np.int64]:
    """Positions of all rows in herding order (iCaRL, Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4).

    The k-th is the row that brings the mean of the first k closest to the mean of all, without replacement (PyCIL's
    rule), so the first m of the order are the choice for any m.

    Args:
        features: of one class; iCaRL takes them at unit length.
    """
    mean, total = features.mean(axis=0), np.zeros(features.shape[1])
    left = np.ones(len(features), dtype=bool)
    order = []
    for k in range(1, len(features) + 1):
        distance = np.linalg.norm(mean - (features + total) / k, axis=1)
        best = int(np.where(left, distance, np.inf).argmin())
        order.append(best)
        left[best] = False
        total = total + features[best]
    return np.array(order, dtype=np.int64)


def race(uniform: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> NDArray[np.float64]:
    """Priorities whose lowest m are m draws without replacement, each in proportion to the scores of what is left.

    An image arrives after an exponential time of rate s; the order of arrival is such a series of draws (Efraimidis and
    Spirakis 2006). Returned are logarithms of the times. Equal scores leave the order of ``uniform``.

    Args:
        uniform: a number in [0, 1] per image, which alone decides the draw.
        scores: s, at least 0; 0 comes last.
    """
    wait = -np.log1p(-np.clip(uniform, 2.0**-64, 1 - 2.0**-53))
    return np.log(wait) - np.log(np.maximum(scores, np.finfo(np.float64).tiny))


def shares(kind: Literal["exp", "equal_task"], budget: int, owned: Sequence[int]) -> list[int]:
    """Share ``budget`` exemplars among the finished tasks (TiC-CLIP, Garg et al. 2024, arXiv 2310.16226).

    ``equal_task`` shares alike. ``exp`` gives half to the newest task, half of the rest to the one before, and so on;
    the two oldest get the same. Whole numbers by largest remainder, ties to the newer task. A task that owns fewer
    images than its share gives all it has, and the rest is spread over the others in proportion.

    Args:
        owned: images that each task has, oldest first.
    """
    count = len(owned)
    weight = [Fraction(1)] * count
    if kind == "exp":
        weight = [Fraction(1, 2 ** (count - max(step, 1))) for step in range(count)]
    given = [0] * count
    open_ = [step for step in range(count) if owned[step]]
    left = min(budget, sum(owned))
    while left and open_:
        part = _largest_remainder(left, [weight[step] for step in open_])
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
    exact = [total * weight / sum(weights) for weight in weights]
    whole = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (exact[i] - whole[i], i), reverse=True)
    for i in order[: total - sum(whole)]:
        whole[i] += 1
    return whole


def spread(labels: NDArray[np.int64], priority: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of ``count`` rows, as equally many per label as can be, those of the lowest priority first.

    Nested: a smaller count chooses among the rows of a larger one.
    """
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where[np.argsort(priority[where], kind="stable")]] = np.arange(len(where))
    return np.sort(np.lexsort((priority, rank))[:count])
