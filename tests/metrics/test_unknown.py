"""Thresholds for a stated rate of false alarms, AUROC and FPR95, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from everclip.metrics.unknown import MOST, HeldOut, auroc, fpr95, held_out, images_for


@pytest.mark.parametrize("n", [19, 20, 57, 140])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_of_images_that_come_alike_the_stated_share_is_called_unknown(n: int, rate: float) -> None:
    """Each of n + 1 images in turn is the new one: the mean over them is what exchangeability promises, exactly."""
    values = np.random.default_rng(n).normal(size=n + 1)
    alarms = 0
    for place, value in enumerate(values):
        alarms += value > held_out("any", "some", np.delete(values, place)).threshold(rate)
    assert rate - 1 / (n + 1) < alarms / (n + 1) <= rate + 1e-12


@pytest.mark.parametrize("rate", [0.05, 0.02, 0.01, 0.1, 1 / 3])
def test_the_finest_rate_is_what_the_images_allow(rate: float) -> None:
    needed = images_for(rate)
    assert held_out("any", "some", np.arange(float(needed))).finest <= rate + 1e-12
    assert needed == 1 or held_out("any", "some", np.arange(needed - 1.0)).finest > rate
    assert held_out("any", "some", np.arange(float(needed))).threshold(rate) == needed - 1  # the largest


def test_a_rate_of_almost_one_is_the_lowest_score() -> None:
    assert held_out("any", "some", np.arange(30.0)).threshold(1 - 1e-12) == 0


def test_of_many_scores_some_hold_the_same_rates() -> None:
    values = np.random.default_rng(0).normal(size=12_345)
    held = held_out("any", "some", values)
    assert (len(held.scores), held.images) == (MOST, 12_345)
    for rate in (0.001, 0.013, 0.05, 0.5):
        k = int(np.ceil((len(values) + 1) * (1 - rate) - 1e-9))
        exact, found = np.sort(values)[k - 1], held.threshold(rate)
        assert found >= exact
        assert ((values > exact) & (values <= found)).mean() < 2 / MOST


def test_equal_scores_raise_no_alarm() -> None:
    for value in np.random.default_rng(0).normal(-25, 3, 50).astype(np.float32).astype(float):
        held = HeldOut.model_validate_json(held_out("any", "some", np.full(30, value)).model_dump_json())
        assert held.threshold(0.05) == value


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": [2.0, 1.0]},
        {"scores": []},
        {"scores": [float("nan")]},
        {"scores": [float("inf")]},
        {"scores": [0.0] * (MOST + 1), "images": 5000},
        {"scores": ["1"]},
        {"images": 1},
        {"images": 0},
        {"score": "x" * 41},
        {"more": 1},
    ],
)
def test_what_no_one_wrote_is_refused(wrong: dict[str, Any]) -> None:
    right = {"score": "mahalanobis", "data": "some", "images": 2, "scores": [1.0, 2.0]}
    assert HeldOut.model_validate(right).images == 2
    with pytest.raises(ValidationError):
        HeldOut.model_validate(right | wrong)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    known, unknown = rng.integers(0, 8, 60).astype(float), rng.integers(3, 10, 40).astype(float)
    pairs = [(u > k) + (u == k) / 2 for k in known for u in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(np.zeros(3), np.ones(2)) == 1
    assert auroc(np.ones(3), np.ones(2)) == 0.5


def test_fpr95_is_what_passes_where_95_percent_of_the_known_pass() -> None:
    known = np.arange(100.0)  # 0 to 94 pass
    assert fpr95(known, np.array([94.0, 94.5, 95.0, 200.0])) == 0.25
    assert fpr95(np.arange(20.0), np.array([18.0, 19.0])) == 0.5
