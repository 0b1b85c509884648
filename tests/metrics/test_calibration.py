"""Temperature scaling and the expected calibration error, against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from everclip.metrics import calibration
from everclip.metrics.calibration import (
    best_temperature,
    expected_error,
    fit,
    likelihood,
    none_best,
    probabilities,
)


def drawn(n: int = 600, c: int = 5, sharp: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: the temperature 1 is right for them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c)) * sharp
    truth = [rng.choice(c, p=row) for row in softmax(logits, axis=1)]
    return logits, np.array(truth, dtype=np.int64)


def test_probabilities_are_a_softmax() -> None:
    logits, _ = drawn()
    np.testing.assert_allclose(probabilities(logits, 0.7), softmax(logits / 0.7, axis=1), rtol=1e-12)
    logits[:, 2] = -np.inf
    found = probabilities(logits)
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    # neither huge nor tiny logits overflow
    np.testing.assert_array_equal(probabilities(np.array([[1e4, -1e4]])), [[1.0, 0.0]])


def test_likelihood_is_the_mean_cross_entropy() -> None:
    logits, truth = drawn()
    wanted = -log_softmax(logits / 3, axis=1)[np.arange(len(truth)), truth].mean()
    assert likelihood(logits, truth, 3) == pytest.approx(wanted, rel=1e-12)
    logits[0, truth[0]] = -np.inf
    assert likelihood(logits, truth) == math.inf
    assert str(likelihood(np.array([[1e4, 0.0]]), np.array([0]))) == "0.0"  # not -0.0


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 8.0, 200.0])
def test_the_temperature_is_the_minimum(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, truth = drawn()
    found = best_temperature(logits * factor, truth)
    reference: Any = minimize_scalar(
        lambda log: likelihood(logits * factor, truth, math.exp(log)), bounds=(-8, 8), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(math.exp(reference.x), rel=1e-4)
    assert found == pytest.approx(factor * best_temperature(logits, truth), rel=1e-6)
    monkeypatch.setattr("everclip.metrics.calibration.CHUNK", 7)
    assert best_temperature(logits * factor, truth) == pytest.approx(found, rel=1e-9)


def test_a_class_that_cannot_be_chosen_changes_nothing() -> None:
    logits, truth = drawn()
    wider = np.concatenate([logits, np.full((len(logits), 1), -np.inf)], axis=1)
    assert best_temperature(wider, truth) == best_temperature(logits, truth)


def test_without_a_mistake_no_temperature_is_best() -> None:
    logits, truth = np.tile([[1.2, 1.0, -np.inf]], (60, 1)), np.zeros(60, dtype=np.int64)
    assert none_best(logits, truth) == "always right"
    assert none_best(logits, 1 - truth) == none_best(logits, np.arange(60) % 2) == "no better than chance"
    truth[:4] = 1
    assert none_best(logits, truth) is None
    found = fit(logits, truth, "some")
    assert 1 / (1 + math.exp(-0.2 / found.temperature)) == pytest.approx(56 / 60)
    truth[1:4:2] = 0  # the odd half is all right now: the even one is measured as it is
    even = np.arange(60) % 2 == 0
    halves = [likelihood(logits[even], truth[even])]
    halves.append(likelihood(logits[~even], truth[~even], best_temperature(logits[even], truth[even])))
    assert fit(logits, truth, "some").nll == pytest.approx(np.mean(halves))


def naive_error(p: np.ndarray, truth: np.ndarray, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, row in enumerate(p) if b / bins < row.max() <= (b + 1) / bins]
        if inside:
            accuracy = np.mean([p[i].argmax() == truth[i] for i in inside])
            total += len(inside) / len(p) * abs(accuracy - np.mean([p[i].max() for i in inside]))
    return float(total)


def test_the_expected_error_is_its_definition() -> None:
    logits, truth = drawn()
    p = probabilities(logits)
    for bins in (1, 10, calibration.BINS):
        assert expected_error(p, truth, bins) == pytest.approx(naive_error(p, truth, bins), abs=1e-12)
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert expected_error(sure, np.array([0, 1])) == pytest.approx(0.5)


def test_a_fit_is_measured_on_images_that_it_did_not_see() -> None:
    logits, truth = drawn(sharp=3)
    found = fit(logits * 4, truth, "some")
    assert (found.images, found.data) == (600, "some")
    assert found.ece < found.ece_before / 4
    assert found.nll < found.nll_before
    even = np.arange(600) % 2 == 0
    halves = [best_temperature(logits[part] * 4, truth[part]) for part in (even, ~even)]
    wanted = np.mean([likelihood(logits[~even] * 4, truth[~even], halves[0]),
                      likelihood(logits[even] * 4, truth[even], halves[1])])  # fmt: skip
    assert found.nll == pytest.approx(wanted)
    assert fit(logits[:1], truth[:1], "one").images == 1
