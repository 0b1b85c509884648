from __future__ import annotations

import math
import random

import pytest
from scipy import stats as scipy_stats

from everclip.metrics import ranks

RNG = random.Random(0)


def test_equal_values_share_their_ranks() -> None:
    assert ranks.ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1.0, 2.5, 4.0]
    assert ranks.ranks([0.5, 0.9, 0.5, 0.1], higher_is_better=False) == [2.5, 4.0, 2.5, 1.0]
    assert ranks.mean_ranks([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]) == pytest.approx([5 / 3, 4 / 3])


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3, 0.4], [RNG.random() for _ in range(40)]])
def test_friedman_is_scipys(values: list[float]) -> None:
    table = [[RNG.choice(values) for _ in range(5)] for _ in range(7)]
    found, expected = ranks.friedman(table), scipy_stats.friedmanchisquare(*zip(*table, strict=True))
    assert found == pytest.approx(expected.pvalue, rel=1e-10)


def test_friedman_needs_three_columns_two_rows_and_a_difference() -> None:
    assert ranks.friedman([[1.0, 2.0], [1.0, 2.0]]) is None
    assert ranks.friedman([[1.0, 2.0, 3.0]]) is None
    assert ranks.friedman([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]) is None
    assert ranks.friedman([]) is None


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_as_published(methods: int, q: float) -> None:
    """q_0.05 of Demsar 2006, table 5."""
    expected = q * math.sqrt(methods * (methods + 1) / (6 * 12))
    assert ranks.critical_difference(methods, 12) == pytest.approx(expected, rel=1e-3)
