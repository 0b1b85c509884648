"""FeCAM: golden numbers, its distances against a loop over images, and classes that come again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from everclip.methods.shared.gaussian import correlation, covariance, inverse, spread
from everclip.models.clip import Clip
from tests.methods.closed import by_class, learn, make, near, on_apples_gpu, pictures, scores

FIRST = torch.tensor([[1, 0], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
SECOND = torch.tensor([[0, 1], [-0.6, 0.8], [0.28, 0.96]], dtype=torch.float64)
QUERY = torch.tensor([[0.5, 0.75**0.5]], dtype=torch.float64)


def of_rows(clip: Clip, *classes: torch.Tensor, **options: Any) -> Any:
    """A method that has learned classes 0, 1, ... from their rows."""
    method = make("fecam", **options)
    method.build(clip, 2)
    for label, rows in enumerate(classes):
        method.include(label, rows)
        method.add(rows, torch.full((len(rows),), label))
    return method


def test_golden_correlations() -> None:
    once = [correlation(spread(covariance(rows), 1, 0))[0, 1] for rows in (FIRST, SECOND)]
    near(torch.stack(once), [-0.39477102, 0.21805155])
    twice = spread(spread(covariance(FIRST), 1, 1), 1, 1)
    near(correlation(twice)[0, 1], -0.7593264)


@pytest.mark.parametrize("rows", [30, 6, 1])
def test_the_inverse_is_the_pseudo_inverse(rows: int) -> None:
    """Six rows of ten numbers have a singular covariance, whose directions without spread pinv leaves out."""
    sample = torch.randn(rows, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = sample.T @ sample / rows
    assert_close(inverse(matrix), torch.linalg.pinv(matrix, hermitian=True), rtol=1e-9, atol=1e-9)
    assert (torch.linalg.matrix_rank(matrix) == 10) == (rows == 30)


def test_golden_distances(clip: Clip) -> None:
    classifier = of_rows(clip, FIRST, SECOND).classifier(clip, (1, 0, 3))
    classifier.encode = lambda rows: rows
    found = classifier(QUERY)
    assert_close(
        found[0, :2], torch.tensor([-0.40446879, -0.18349011], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert found[0, 2] == -torch.inf, "never trained"


def test_a_class_that_comes_again(clip: Clip) -> None:
    average, pooled = (make("fecam", again=again) for again in ("average", "pooled"))
    for method in (average, pooled):
        method.build(clip, 2)
        for rows in (FIRST, SECOND):
            method.include(0, rows)
            method.add(rows, torch.zeros(len(rows), dtype=torch.int64))
    mixed = correlation(spread(average.kept["0"].double(), 1, 0))[0, 1]
    assert_close(mixed, torch.tensor(-0.09020573, dtype=torch.float64), atol=1e-6, rtol=0)
    together = np.cov(torch.cat([FIRST, SECOND]).T)
    assert_close(pooled.kept["0"].double(), torch.from_numpy(together), atol=1e-6, rtol=0)


@pytest.mark.parametrize("again", ["average", "pooled"])
def test_covariances_kept_on_apples_gpus_meet_sums_beside_them(again: str, clip: Clip) -> None:
    """Such a GPU has no fp64, so that sums stand on the CPU; kept fp32 matrices move with the model."""
    method = of_rows(clip, FIRST, again=again)
    method.kept["0"] = on_apples_gpu(2, 2)
    method.include(0, SECOND)
    assert (method.kept["0"].device.type, method.kept["0"].dtype) == ("cpu", torch.float32)


def test_one_image_of_a_class_has_the_covariance_of_the_others(clip: Clip) -> None:
    method = of_rows(clip, FIRST, SECOND[:1])
    found = method.classifier(clip, (0, 1))
    assert torch.equal(found.matrices[0], found.matrices[1])
    alone = of_rows(clip, FIRST[:1]).classifier(clip, (0,))
    assert_close(alone.matrices[0], torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["class", "common"])
@torch.no_grad()
def test_distances_by_hand(kind: str, clip: Clip) -> None:
    """Six classes in two tasks, against numpy."""
    tasks = by_class([0, 1], [2, 3, 4, 5])
    found = scores(learn(make("fecam", covariance=kind, shrink_others=0.5), clip, tasks), clip)
    on = pictures()
    x = clip.encode_image(on.images).double().numpy()
    parts = [np.cov(x[which].T) for which in tasks]
    common = (2 * parts[0] + 4 * parts[1]) / 6
    for label in range(6):
        own = x[on.labels == label]
        sigma = common if kind == "common" else np.cov(own.T)
        off = sigma[~np.eye(len(sigma), dtype=bool)]
        sigma = sigma + np.trace(sigma) / len(sigma) * np.eye(len(sigma))
        sigma = sigma + 0.5 * off.mean() * (1 - np.eye(len(sigma)))
        scale = 1 / np.sqrt(np.diag(sigma))
        inverse = np.linalg.pinv(scale[:, None] * sigma * scale)
        for image, row in enumerate(x - own.mean(0)):
            assert found[image, label].item() == pytest.approx(-row @ inverse @ row, rel=1e-4)
