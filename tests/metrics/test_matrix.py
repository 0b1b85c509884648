"""The accuracy matrix: golden numbers, definitions, and what is undefined."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everclip.metrics.matrix import Matrix

R = [[0.9, 0.3, 0.2], [0.8, 0.85, 0.25], [0.7, 0.8, 0.95]]
ZERO_SHOT = [0.4, 0.35, 0.3]


def matrix(rows: list[list[float]], counts: list[int]) -> Matrix:
    """Of a full table R: what stands right of the diagonal is the value ahead."""
    made = Matrix()
    for t, row in enumerate(rows):
        made.add_stage(row[: t + 1], counts[: t + 1], row[t + 1] if t + 1 < len(row) else None)
    return made


def test_golden() -> None:
    golden = matrix(R, [100, 100, 100])
    assert golden.accuracy_after_stage == pytest.approx([0.9, 0.825, 0.816667], abs=5e-7)
    assert golden.task_mean_after_stage == pytest.approx(golden.accuracy_after_stage)
    assert golden.last == pytest.approx(0.816667, abs=5e-7)
    assert golden.average == pytest.approx(0.847222, abs=5e-7)
    assert golden.forgetting == pytest.approx(0.125)
    assert golden.backward_transfer == pytest.approx(-0.125)
    assert golden.forward_transfer(ZERO_SHOT) == pytest.approx(-0.05)
    assert golden.stages == 3


def test_images_weigh_and_tasks_weigh() -> None:
    """R = .5 on 10 images and 1 on 30: 35 of 40 are right, but the mean of the tasks is .75."""
    made = matrix([[0.8, 0.0], [0.5, 1.0]], [10, 30])
    assert made.accuracy_after_stage == pytest.approx([0.8, 0.875])
    assert made.task_mean_after_stage == pytest.approx([0.8, 0.75])
    assert made.last == pytest.approx(0.875)
    assert made.average == pytest.approx(0.8375)
    assert made.counts == [10, 30]


@given(
    st.integers(1, 5).flatmap(
        lambda t: st.tuples(
            st.lists(st.integers(1, 50), min_size=t, max_size=t),
            st.lists(st.lists(st.floats(0, 1), min_size=t, max_size=t), min_size=t, max_size=t),
        )
    )
)
def test_accuracy_on_the_union(drawn: tuple[list[int], list[list[float]]]) -> None:
    """A_t is the share of right answers among all test images so far."""
    counts, shares = drawn
    right = [[round(share * n) for share, n in zip(row, counts, strict=True)] for row in shares]
    rows = [[r / n for r, n in zip(row, counts, strict=True)] for row in right]
    found = matrix(rows, counts).accuracy_after_stage
    expected = [sum(right[t][: t + 1]) / sum(counts[: t + 1]) for t in range(len(counts))]
    assert found == pytest.approx(expected)


def test_forgetting_takes_the_best_earlier_stage_but_the_last() -> None:
    """Task 1 was best after stage 2 (.9), so it lost .3; task 2 gained .1, which counts against."""
    made = matrix([[0.5, 0.0, 0.0], [0.9, 0.6, 0.0], [0.6, 0.7, 0.8]], [5, 5, 5])
    assert made.forgetting == pytest.approx((0.3 - 0.1) / 2)
    assert made.backward_transfer == pytest.approx((0.1 + 0.1) / 2)


def test_forward_transfer_compares_with_each_tasks_own_zero_shot() -> None:
    made = matrix([[0.9, 0.6, 0.0], [0.9, 0.9, 0.2], [0.9, 0.9, 0.9]], [1, 1, 1])
    assert made.forward_transfer([0.0, 0.5, 0.3]) == pytest.approx((0.1 - 0.1) / 2)
    assert made.forward_transfer([9.9, 0.5, 0.4]) == pytest.approx((0.1 - 0.2) / 2)


def test_one_task() -> None:
    made = matrix([[0.7]], [12])
    assert made.last == made.average == pytest.approx(0.7)
    assert (made.forgetting, made.backward_transfer, made.forward_transfer([0.5])) == (None, None, None)
    assert made.to_list() == [[0.7]]


def test_unfinished_run_counts_only_its_stages() -> None:
    """After two of three stages the value ahead of the second does not count: its task was not reached."""
    made = matrix(R[:2], [100, 100, 100])
    assert made.forward_transfer([0.4, 0.35, 0.0]) == pytest.approx(0.3 - 0.35)
    assert made.forgetting == pytest.approx(0.1)
    assert made.to_list() == [[0.9, None], [0.8, 0.85]]


def test_through_json() -> None:
    made = matrix(R, [10, 20, 30])
    copy = Matrix()
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert copy.to_list() == made.to_list() == [[0.9, None, None], [0.8, 0.85, None], [0.7, 0.8, 0.95]]
    assert copy.accuracy_after_stage == made.accuracy_after_stage
    assert copy.forward_transfer(ZERO_SHOT) == made.forward_transfer(ZERO_SHOT)
    copy.add_stage([0.5] * 4, [10, 20, 30, 40])
    assert (made.stages, copy.stages) == (3, 4)


def test_a_task_without_test_images_is_no_column() -> None:
    """The second of four tasks brings no class of its own: every number is as if it were not there."""
    made, without = Matrix(), Matrix()
    made.add_stage([0.9], [10])
    made.add_stage([0.8, None], [10, 0], 0.4)
    made.add_stage([0.7, None, 0.6], [10, 0, 30])
    made.add_stage([0.5, None, 0.7, 0.9], [10, 0, 30, 20])
    for row, counts in (([0.9], [10]), ([0.7, 0.6], [10, 30]), ([0.5, 0.7, 0.9], [10, 30, 20])):
        without.add_stage(row, counts)
    assert made.to_list()[1] == [0.8, None, None, None]
    assert made.accuracy_after_stage[1:] == [0.8, *without.accuracy_after_stage[1:]]
    assert made.task_mean_after_stage[2:] == without.task_mean_after_stage[1:]
    assert made.forgetting == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)
    assert made.backward_transfer == pytest.approx(((0.5 - 0.9) + (0.7 - 0.6)) / 2)
    assert made.forward_transfer([0.3, None, 0.1, 0.2]) == pytest.approx(0.4 - 0.1)


@pytest.mark.parametrize(
    ("row", "counts"),
    [([0.5, 0.5], [3, 3]), ([0.5], [3, 3]), ([], []), ([math.nan], [0]), ([None], [0]), ([None], [3])],
)
def test_a_stage_has_one_value_a_task_and_each_task_images(
    row: list[float | None], counts: list[int]
) -> None:
    with pytest.raises(AssertionError):
        Matrix().add_stage(row, counts)


def test_a_restored_matrix_shares_no_rows() -> None:
    made, copy = matrix(R, [10, 20, 30]), Matrix()
    copy.load_state_dict(made.state_dict())
    copy.add_stage([0.5] * 4, [10, 20, 30, 40])
    assert (made.stages, made.counts) == (3, [10, 20, 30])
