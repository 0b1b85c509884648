"""Tell how sure a number is: intervals over seeds, paired tests over seeds and over test images, corrections for many.

Differences are first minus second. A test is two-sided; an interval is of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

EXACT = 20
"""Number of differences up to which all sign flips are counted; beyond it, ``DRAWS`` flips are drawn."""
DRAWS = 100_000
LEAST = 3
"""Fewest values with an interval: that of two is so wide (12.7 standard errors) that it says nothing."""
_UPTO = 0.975
"""Probability below the upper end of an interval of 95 %."""
_NORMAL = NormalDist().inv_cdf(_UPTO)


class Interval(NamedTuple):
    """A mean with its confidence interval; ``low`` and ``high`` are None for fewer than ``LEAST`` values."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Paired(NamedTuple):
    """A mean difference with its confidence interval and p-value; None where a single pair cannot give them."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and Student t interval of at least one value (seeds are independent repetitions); without an
    interval below ``LEAST`` values."""
    n = len(values)
    # Rounding may move the mean of equal values away from them.
    mean = min(max(math.fsum(values) / n, min(values)), max(values))
    if n < LEAST:
        return Interval(mean, None, None, n)
    half = float(special.stdtrit(n - 1, _UPTO)) * _error(values, mean)
    return Interval(mean, mean - half, mean + half, n)


def _error(values: Sequence[float], mean: float) -> float:
    """Return the standard error of the mean."""
    n = len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Return the paired t-test of equally many values in the same order, such as one per seed.

    Differences that are all equal have no spread to judge by: p is 1 where they are 0, else p and interval are None.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, low, high, n = interval(differences)
    if n == 1:
        return Paired(mean, None, None, None, 1)
    error, rounding = _error(differences, mean), 1e-12 * max(map(abs, [*first, *second]))
    if error <= rounding:
        alike = abs(mean) <= rounding
        return Paired(mean, low if alike else None, high if alike else None, 1.0 if alike else None, n)
    return Paired(mean, low, high, float(2 * special.stdtr(n - 1, -abs(mean) / error)), n)


def sign_flip(first: Sequence[float], second: Sequence[float]) -> float:
    """Return p of the paired permutation test, which assumes no distribution: the fraction of sign flips of the
    differences whose mean is at least as far from 0. It cannot be below 2/2^n: with five seeds not below 0.0625.

    All flips are counted up to ``EXACT`` pairs; above, ``DRAWS`` are drawn with a fixed seed and p is not 0.
    """
    differences = np.array([a - b for a, b in zip(first, second, strict=True)])
    seen = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()  # rounding makes ties unequal
    if len(differences) > EXACT:
        signs = np.random.default_rng(0).integers(2, size=(DRAWS, len(differences)), dtype=np.int8)
        return (1 + int((np.abs((2.0 * signs - 1) @ differences) >= seen).sum())) / (1 + DRAWS)
    sums = differences[:1]  # the other half of the flips mirrors this one
    for value in differences[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= seen).mean())


def mcnemar(first: NDArray[Any], second: NDArray[Any]) -> Paired:
    """Return the exact McNemar test of two classifiers on the same images: it tells of other images, not other seeds.

    The interval is Agresti and Min's (2005): Wald's with half an image more in each of the four cells.

    Args:
        first: ``[n]``, whether each image is right; ``second`` in the same order.
    """
    assert len(first) == len(second) > 0
    n, gained, lost = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    total, difference = n + 2, (gained - lost) / (n + 2)
    half = _NORMAL * math.sqrt(((gained + lost + 1) / total - difference**2) / total)
    p = min(1.0, float(2 * special.bdtr(min(gained, lost), gained + lost, 0.5)))
    return Paired((gained - lost) / n, max(-1.0, difference - half), min(1.0, difference + half), p, n)


def by_chance(first: float, second: float, images: int) -> float:
    """Return the difference of two accuracies on ``images`` test images that chance alone may give: half of its
    interval.

    Agresti and Caffo's (2000), as if each were measured on images of its own. On the same images it is at most about as
    wide, so a larger gap is not chance; where both models' answers are known, ``mcnemar`` detects smaller ones.
    """
    if not images:
        return 0.0
    shares = [(accuracy * images + 1) / (images + 2) for accuracy in (first, second)]
    return _NORMAL * math.sqrt(sum(share * (1 - share) for share in shares) / (images + 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given: calling all below 0.05
    significant has a chance of at most 0.05 of any false call."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected
