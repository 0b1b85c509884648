"""What the answers to single images say: confusions, fates of old classes, how sure the model was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everclip.metrics.calibration import expected_error
from everclip.runs.predictions import (
    Predictions,
    calibration,
    confusions,
    coverage,
    fates,
    predictions,
    reliability,
)
from everclip.runs.read import RunData, read_run
from tests.report.synthetic import IMAGES, write_run


@pytest.fixture
def answered(tmp_path: Path) -> RunData:
    """A run of 3 tasks by 4 classes with its answers."""
    write_run(tmp_path / "r", tasks=3, per_task=4, steps=6, answers=True)
    return read_run(tmp_path / "r")


def answers(right: list[bool], margin: list[float], sure: list[float] | None = None) -> Predictions:
    truth = np.zeros(len(right), dtype=np.int64)
    first = np.where(right, 0, 1)
    return Predictions(
        truth, first, np.array(margin, np.float32), None if sure is None else np.array(sure, np.float32)
    )


def test_confusions_go_by_class_names(answered: RunData) -> None:
    """Counted from the file, image by image."""
    with np.load(answered.path / "predictions.npz") as file:
        label, first = file["label"], file["top"][:, 0]
    names = dict(zip(answered.results["class_labels"], answered.classes, strict=True))
    found = confusions(answered)
    assert sum(pair.images for pair in found) == (label != first).sum() > 0
    worst = found[0]
    assert worst.of == IMAGES
    assert worst.images == max(pair.images for pair in found)
    label_of = {name: k for k, name in names.items()}
    truth, taken = label_of[worst.true], label_of[worst.taken]
    assert ((label == truth) & (first == taken)).sum() == worst.images


def test_fates_of_old_classes(answered: RunData) -> None:
    shares = fates(answered)
    assert shares is not None
    assert sum(shares) == pytest.approx(1)
    old = [row for row in answered.results["per_class"] if row["task"] < 2]
    assert shares[0] == pytest.approx(np.mean([row["last"] for row in old]))
    assert shares[1] > 0
    assert shares[3] == 0  # the generator's wrong answers are of the same task or a later one


def test_nothing_is_said_without_labels_or_without_answers(tmp_path: Path, answered: RunData) -> None:
    del answered.results["class_labels"]
    assert confusions(answered) == []
    assert fates(answered) is None
    assert predictions(answered) is not None
    write_run(tmp_path / "bare", tasks=2, per_task=3, steps=4)
    assert predictions(read_run(tmp_path / "bare")) is None
    (tmp_path / "bare" / "predictions.npz").write_bytes(b"PK torn")
    assert predictions(read_run(tmp_path / "bare")) is None


def test_no_fates_where_all_tasks_have_the_same_classes(tmp_path: Path) -> None:
    write_run(tmp_path / "r", tasks=1, per_task=6, steps=6, answers=True)
    run = read_run(tmp_path / "r")
    assert fates(run) is None
    assert confusions(run)


def test_coverage_starts_with_the_most_confident() -> None:
    found = answers([True, False, True, True], [0.4, 0.1, 0.3, 0.2])
    assert coverage(found, 4) == pytest.approx([1, 1, 1, 0.75])
    assert coverage(answers([False, True], [0.9, 0.1]), 2) == pytest.approx([0, 0.5])
    assert len(coverage(answers([True], [float("inf")]), 20)) == 20


def test_reliability_and_calibration_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=500)
    truth = rng.integers(4, size=500)
    found = Predictions(truth, p.argmax(1), np.zeros(500, np.float32), p.max(1))
    bins = reliability([found])
    assert sum(one.images for one in bins) == 500
    gap = p.max(1).mean() - (p.argmax(1) == truth).mean()
    assert calibration(found) == pytest.approx((expected_error(p, truth), gap))
    assert sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / 500 == pytest.approx(
        expected_error(p, truth)
    )
    twice = reliability([found, found])
    assert [b.images for b in twice] == [2 * b.images for b in bins]


def test_certainty_is_in_the_last_bin_and_no_probability_in_none() -> None:
    (certain,) = reliability([answers([True, False], [1, 1], [1.0, 0.95])])
    assert (certain.images, certain.accuracy) == (2, 0.5)
    assert reliability([answers([True], [1])]) == []
    assert calibration(answers([True], [1])) is None
    assert reliability([]) == []
