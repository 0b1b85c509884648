"""Scores of test images, and what is computed from them, against loops written out here."""

from __future__ import annotations

import numpy as np
import pytest

from everclip.training.evaluate import Scores


@pytest.fixture
def scores() -> Scores:
    """Three classes in the order 7, 2, 5; two tasks, the second with class 5 alone."""
    table = [[3, 1, 0], [0, 1, 9], [1, 2, 0], [0, 0, 4], [5, 0, 1]]
    truth, tasks = [7, 2, 2, 5, 5], [0, 0, 0, 1, 1]
    arrays = (np.array(tasks), np.array(truth), np.arange(10, 15))
    return Scores((7, 2, 5), *arrays, np.array(table, dtype=np.float32))


def naive(scores: Scores, among: int, rows: list[int]) -> float:
    right = 0
    for row in rows:
        best = max(range(among), key=lambda column: scores.scores[row, column])
        right += scores.labels[best] == scores.truth[row]
    return right / len(rows)


def test_accuracy_is_among_the_classes_known_by_then(scores: Scores) -> None:
    assert scores.accuracy(0, 2) == naive(scores, 2, [0, 1, 2]) == 1.0
    assert scores.accuracy(0, 3) == naive(scores, 3, [0, 1, 2]) == pytest.approx(2 / 3)
    assert scores.accuracy(1, 3) == naive(scores, 3, [3, 4]) == 0.5


def test_accuracy_up_to_a_task_weighs_images_alike(scores: Scores) -> None:
    assert scores.accuracy_up_to(0, 3) == naive(scores, 3, [0, 1, 2])
    assert scores.accuracy_up_to(1, 3) == naive(scores, 3, [0, 1, 2, 3, 4]) == 0.6
    assert [scores.count(task) for task in (0, 1)] == [3, 2]


def test_accuracy_per_class(scores: Scores) -> None:
    assert scores.per_class(3, 2) == {2: 0.5, 5: 0.5, 7: 1.0}
    assert scores.per_class(2, 1) == {2: 1.0, 7: 1.0}


def test_the_best_labels_with_margin_and_confidence(scores: Scores) -> None:
    top = scores.top(3, 2, k=2)
    assert top["top"].tolist() == [[7, 2], [5, 2], [2, 7], [5, 7], [7, 5]]
    assert top["margin"].tolist() == [2, 8, 1, 4, 4]
    assert top["id"].tolist() == [10, 11, 12, 13, 14]
    first = np.exp([3, 1, 0])
    assert top["confidence"][0] == pytest.approx(first[0] / first.sum())
    alone = scores.top(1, 1, k=5)
    assert alone["top"].tolist() == [[7], [7], [7]]
    assert np.isinf(alone["margin"]).all()
