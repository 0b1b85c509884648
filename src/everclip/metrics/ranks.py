"""Rank methods over blocks: which is better on the whole, when blocks (seeds, memory sizes, data sets) differ in level.

A table has one row per block and one column per method. Demsar, Statistical comparisons of classifiers over
multiple data sets, JMLR 2006. Blocks must be independent for the tests to hold: data sets are,
memory sizes with the same seeds are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def ranks(values: Sequence[float], higher_is_better: bool = True) -> list[float]:
    """Rank of each value, 1 the best; equal values share the mean of their ranks."""
    order = sorted(values, reverse=higher_is_better)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def mean_ranks(table: Sequence[Sequence[float]], higher_is_better: bool = True) -> list[float]:
    """Return the mean rank of each column over the rows."""
    rows = [ranks(row, higher_is_better) for row in table]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def friedman(table: Sequence[Sequence[float]]) -> float | None:
    """Return p of Friedman's test that all columns are alike, corrected for ties; None for fewer than three columns or
    two rows, or all ties."""
    n, k = len(table), len(table[0]) if table else 0
    if n < 2 or k < 3 or all(len(set(row)) == 1 for row in table):
        return None
    from scipy.stats import friedmanchisquare  # takes a second to import

    return float(friedmanchisquare(*zip(*table, strict=True)).pvalue)


def critical_difference(columns: int, rows: int) -> float:
    """Return Nemenyi's critical difference.

    Mean ranks of two of ``columns`` methods over ``rows`` blocks differ if they are further apart.
    """
    from scipy.stats import studentized_range  # takes a second to import

    width = float(studentized_range.ppf(0.95, columns, math.inf))
    return width / math.sqrt(2) * math.sqrt(columns * (columns + 1) / (6 * rows))
