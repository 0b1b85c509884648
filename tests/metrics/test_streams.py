"""Measures of streams, by hand."""

from __future__ import annotations

import pytest

from everclip.metrics.streams import Group, area, by_frequency, mean, transfer


def test_each_class_counts_alike() -> None:
    assert mean([1.0, 0.5, 0.0]) == 0.5
    assert mean([]) is None


def test_the_area_weighs_by_images() -> None:
    assert area([0.5, 1.0], [30, 10]) == pytest.approx(0.625)
    assert area([1.0, 1.0, 1.0], [1, 2, 3]) == 1


def test_groups_have_their_borders_in_the_middle() -> None:
    found = by_frequency({0: 1.0, 1: 0.5, 2: 0.25, 3: 0.75}, {0: 101, 1: 100, 2: 20, 3: 19}, 100, 20)
    assert found == {"many": Group(1, 1.0), "medium": Group(2, 0.375), "few": Group(1, 0.75)}
    assert by_frequency({0: 1.0}, {0: 5}, 100, 20)["many"] == Group(0, None)


def test_transfer_average_and_last() -> None:
    """ZSCL's Fig. 2: Transfer above the diagonal, Last the last row, Average everything; columns first."""
    matrix = [[0.9, 0.4, 0.2], [0.8, 0.7, 0.4], [0.6, 0.5, 1.0]]
    found = transfer(matrix)
    assert found.transfer == pytest.approx((0.4 + (0.2 + 0.4) / 2) / 2)
    assert found.average == pytest.approx(((0.9 + 0.8 + 0.6) + (0.4 + 0.7 + 0.5) + (0.2 + 0.4 + 1.0)) / 9)
    assert found.last == pytest.approx((0.6 + 0.5 + 1.0) / 3)
    assert transfer([[0.5]]).transfer is None


def test_a_task_without_tests_is_left_out() -> None:
    assert transfer([[0.5, None, 0.1], [0.5, None, 0.3], [0.4, None, 0.9]]).transfer == pytest.approx(0.2)
