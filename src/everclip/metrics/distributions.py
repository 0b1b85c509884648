"""Compute tails and quantiles of distributions that tests need, without scipy: t, chi-square, binomial, range.

The incomplete beta and gamma functions are evaluated as continued fractions and series (Abramowitz and Stegun, 6.5
and 26.5); they agree with scipy to 1e-10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

_TINY, _EPSILON, _MOST = 1e-300, 1e-16, 100_000


def beta_regularised(a: float, b: float, x: float) -> float:
    """I_x(a, b), the distribution function of a beta variable, for a, b > 0 and x in 0..1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - beta_regularised(b, a, 1 - x)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)

    def terms() -> Iterator[tuple[float, float]]:
        yield 1.0, 1.0
        for m in range(_MOST):
            if m:
                yield m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), 1.0
            yield -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)), 1.0

    return math.exp(log) * _fraction(terms()) / a


def gamma_upper(a: float, x: float) -> float:
    """Q(a, x), the probability that a gamma variable of shape ``a`` > 0 is above x >= 0."""
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        total = term = 1 / a
        for n in range(1, _MOST):
            term *= x / (a + n)
            total += term
            if term < total * _EPSILON:
                break
        return 1 - scale * total

    def terms() -> Iterator[tuple[float, float]]:
        yield 1.0, x + 1 - a
        for n in range(1, _MOST):
            yield -n * (n - a), x + 2 * n + 1 - a

    return scale * _fraction(terms())


def _fraction(terms: Iterator[tuple[float, float]]) -> float:
    """The continued fraction a1/(b1 + a2/(b2 + ...)) of pairs (a, b), by Lentz's method."""
    value, c, d = _TINY, _TINY, 0.0
    for a, b in terms:
        d = 1 / ((b + a * d) or _TINY)
        c = (b + a / c) or _TINY
        value *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    return value


def t_two_sided(t: float, freedom: float) -> float:
    """Probability that a Student t variable is further from 0 than ``t``."""
    return beta_regularised(freedom / 2, 0.5, freedom / (freedom + t * t)) if math.isfinite(t) else 0.0


@lru_cache(maxsize=1024)
def t_quantile(level: float, freedom: float) -> float:
    """The t with ``level`` (in 0..1) of the probability between -t and t."""
    return _root(lambda t: t_two_sided(t, freedom) - (1 - level))


def normal_quantile(level: float) -> float:
    """The z with ``level`` (in 0..1) of a standard normal variable's probability between -z and z."""
    return _root(lambda z: math.erfc(z / math.sqrt(2)) - (1 - level))


def chi_square_upper(x: float, freedom: float) -> float:
    """Probability that a chi-square variable is above ``x``."""
    return gamma_upper(freedom / 2, x / 2)


def binomial_two_sided(successes: int, n: int) -> float:
    """Exact two-sided p of ``successes`` in ``n`` fair trials; 1 where there are none."""
    few = min(successes, n - successes)
    return 1.0 if n == 2 * few else min(1.0, 2 * beta_regularised(n - few, few + 1, 0.5))


@lru_cache(maxsize=256)
def range_quantile(level: float, k: int) -> float:
    """The width that the range of ``k`` >= 2 standard normal variables stays below with probability ``level``."""
    z = np.linspace(-9, 9, 3601)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    below = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in z])

    def missing(width: float) -> float:
        above = np.array([math.erfc(-(value + width) / math.sqrt(2)) / 2 for value in z])
        return level - float(k * np.sum(density * (above - below) ** (k - 1)))

    return _root(missing)


def _root(falling: Callable[[float], float]) -> float:
    """Find where a falling function of x > 0 is 0."""
    high = 1.0
    while falling(high) > 0 and high < 1e300:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
