"""Statistics: equal to scipy's, and right about how often they are right."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats as scipy_stats

from everclip.metrics import stats

RNG = random.Random(0)
FEW = [0.71, 0.74, 0.70, 0.69, 0.75]
OTHERS = [0.70, 0.71, 0.69, 0.70, 0.71]


def test_an_interval_is_scipys() -> None:
    mean, low, high, n = stats.interval(FEW)
    expected = scipy_stats.t.interval(0.95, n - 1, loc=np.mean(FEW), scale=scipy_stats.sem(FEW))
    assert (mean, low, high) == pytest.approx((np.mean(FEW), *expected), rel=1e-10)
    assert stats.interval([0.5]) == (0.5, None, None, 1)
    assert stats.interval([0.5, 0.7]) == (pytest.approx(0.6), None, None, 2)
    assert stats.interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 3)


def test_a_mean_is_never_outside_its_values() -> None:
    """Of three times 0.175 the sum, divided by 3, is rounded to less than 0.175."""
    for value in (0.003, 0.175):
        assert stats.interval([value] * 3).mean == value


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 5, 20):
        held = 0
        for row in rng.normal(0.7, 0.02, size=(4000, n)).tolist():
            _, low, high, _ = stats.interval(row)
            assert low is not None
            assert high is not None
            held += low <= 0.7 <= high
        assert held / 4000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_a_paired_test_is_scipys() -> None:
    result = stats.paired(FEW, OTHERS)
    expected = scipy_stats.ttest_rel(FEW, OTHERS)
    interval = expected.confidence_interval()
    assert result.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert result.difference == pytest.approx(np.mean(FEW) - np.mean(OTHERS))
    mirrored = stats.paired(OTHERS, FEW)
    assert (mirrored.difference, mirrored.p) == pytest.approx((-result.difference, result.p))


def test_without_a_spread_there_is_nothing_to_judge_by() -> None:
    assert stats.paired([0.5], [0.4]) == (pytest.approx(0.1), None, None, None, 1)
    assert stats.paired([0.5, 0.6], [0.4, 0.5]) == (pytest.approx(0.1), None, None, None, 2)
    assert stats.paired([0.1, 0.7], [0.1, 0.7]) == (0, None, None, 1, 2)
    assert stats.paired([0.1, 0.7, 0.8], [0.1, 0.7, 0.8]) == (0, 0, 0, 1, 3)
    assert stats.paired([0.3] * 3, [0.1 + 0.2] * 3) == (pytest.approx(0), *[pytest.approx(0)] * 2, 1, 3)


def test_a_true_difference_of_zero_is_called_significant_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3000, 5)).tolist()
    t = np.array([stats.paired(x, y).p for x, y in zip(a, b, strict=True)])
    flips = np.array([stats.sign_flip(x, y) for x, y in zip(a, b, strict=True)])
    assert (t < 0.05).mean() == pytest.approx(0.05, abs=0.014)
    assert flips.min() == 2 / 2**5
    assert (flips <= 0.0625).mean() == pytest.approx(0.0625, abs=0.016)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_sign_flips_are_scipys(n: int) -> None:
    first, second = ([RNG.gauss(mean, 1) for _ in range(n)] for mean in (0.6, 0))
    differences = np.subtract(first, second)
    if n == 1:  # scipy wants two
        assert stats.sign_flip(first, second) == 1
        return
    expected = scipy_stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=2**n
    )
    assert stats.sign_flip(first, second) == pytest.approx(expected.pvalue, rel=1e-12)


def test_many_sign_flips_are_drawn() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.5, 1, size=30).tolist(), [0.0] * 30
    drawn = stats.sign_flip(first, second)
    assert drawn == stats.sign_flip(first, second)
    assert drawn == pytest.approx(scipy_stats.ttest_1samp(first, 0)[1], rel=0.3)
    assert stats.sign_flip([1.0] * 30, second) == pytest.approx(1e-5, rel=0.5)


def test_ties_made_unequal_by_rounding_count_as_ties() -> None:
    assert stats.sign_flip([0.1 + 0.2, 0.5], [0.0, 0.2]) == 0.5  # 0.30000000000000004 and 0.3


def test_mcnemar_is_the_binomial_test_of_the_images_told_apart() -> None:
    first = np.array([True] * 60 + [True] * 14 + [False] * 5 + [False] * 21)
    second = np.array([True] * 60 + [False] * 14 + [True] * 5 + [False] * 21)
    result = stats.mcnemar(first, second)
    assert result.p == pytest.approx(scipy_stats.binomtest(5, 19).pvalue, rel=1e-10)
    assert (result.difference, result.n) == (pytest.approx(0.09), 100)
    assert result.low is not None
    assert result.high is not None
    assert 0 < result.low < 0.09 < result.high < 0.2
    assert stats.mcnemar(first, first).p == 1


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (1, 1), (2, 7), (9, 0), (430, 470)])
def test_mcnemar_is_exact_for_any_number_of_images(gained: int, lost: int) -> None:
    cell = np.repeat([1, 2], [gained, lost])
    expected = scipy_stats.binomtest(gained, gained + lost).pvalue
    assert stats.mcnemar(cell == 1, cell == 2).p == pytest.approx(expected, rel=1e-10)


def test_what_chance_gives_two_accuracies() -> None:
    """Of two equal models on images of their own, 95 of 100 gaps are below it; near 0 and 1, nearly all."""
    rng = np.random.default_rng(0)
    for images, true in ((50, 0.5), (400, 0.8), (60, 0.02)):
        pairs = rng.binomial(images, true, size=(4000, 2)) / images
        within = np.mean([abs(a - b) <= stats.by_chance(a, b, images) for a, b in pairs.tolist()])
        assert 0.94 <= within <= (0.965 if images * true > 5 else 1)
    assert stats.by_chance(0.5, 0.5, 0) == 0
    assert stats.by_chance(0.5, 0.6, 10_000) == pytest.approx(
        1.96 * (0.25 / 1e4 + 0.24 / 1e4) ** 0.5, rel=1e-3
    )


def test_the_interval_over_images_holds_the_true_difference() -> None:
    """Over all that 50 images can show of a first method right alone on one in five and a second on one in ten."""
    n, held = 50, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            cell = np.repeat([0, 1, 2], [gained, lost, n - gained - lost])
            _, low, high, _, _ = stats.mcnemar(cell == 0, cell == 1)
            assert low is not None
            assert high is not None
            if low <= 0.1 <= high:
                held += scipy_stats.multinomial.pmf([gained, lost, n - gained - lost], n, [0.2, 0.1, 0.7])
    assert held == pytest.approx(0.95, abs=0.005)


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.6]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_makes_few_false_calls_among_many_tests() -> None:
    rng = np.random.default_rng(4)
    wrong = sum(min(stats.holm(row)) < 0.05 for row in rng.random((3000, 12)).tolist())
    assert wrong / 3000 == pytest.approx(0.05, abs=0.014)
