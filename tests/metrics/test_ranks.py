from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats as scipy_stats

from everclip.metrics import distributions, ranks

RNG = random.Random(0)


def test_equal_values_share_their_ranks() -> None:
    assert ranks.ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1.0, 2.5, 4.0]
    assert ranks.ranks([0.5, 0.9, 0.5, 0.1], higher_is_better=False) == [2.5, 4.0, 2.5, 1.0]
    assert ranks.mean_ranks([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]) == pytest.approx([5 / 3, 4 / 3])


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3, 0.4], [RNG.random() for _ in range(40)]])
def test_friedman_is_scipys(values: list[float]) -> None:
    table = [[RNG.choice(values) for _ in range(5)] for _ in range(7)]
    found, expected = ranks.friedman(table), scipy_stats.friedmanchisquare(*zip(*table, strict=True))
    assert found is not None
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)


def test_friedman_needs_three_columns_two_rows_and_a_difference() -> None:
    assert ranks.friedman([[1.0, 2.0], [1.0, 2.0]]) is None
    assert ranks.friedman([[1.0, 2.0, 3.0]]) is None
    assert ranks.friedman([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]) is None
    assert ranks.friedman([]) is None


@pytest.mark.parametrize("columns", [2, 3, 5, 10, 24])
def test_the_critical_difference_comes_from_the_studentized_range(columns: int) -> None:
    width = scipy_stats.studentized_range.ppf(0.95, columns, np.inf)
    assert distributions.range_quantile(0.95, columns) == pytest.approx(width, rel=1e-9)
    expected = width / math.sqrt(2) * math.sqrt(columns * (columns + 1) / (6 * 12))
    assert ranks.critical_difference(columns, 12) == pytest.approx(expected, rel=1e-9)


def test_the_published_example() -> None:
    """Demsar 2006: q_0.05 of five methods is 2.728."""
    assert ranks.critical_difference(5, 1) == pytest.approx(2.728 * math.sqrt(5), rel=1e-3)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (0, 1), (1, 2), (2, 9), (9, 9), (430, 900)])
def test_the_binomial_test_is_scipys(successes: int, n: int) -> None:
    expected = scipy_stats.binomtest(successes, n).pvalue if n else 1
    assert distributions.binomial_two_sided(successes, n) == pytest.approx(expected, rel=1e-10)
