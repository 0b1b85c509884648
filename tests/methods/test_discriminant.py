"""Whitened cosines and their shrinkage, against golden numbers and definitions written out over the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.errors import RunError
from everclip.methods.shared import closed_form as closed
from everclip.methods.shared.discriminant import MOST, strength, whitened, within_covariance
from tests.methods.closed import random


def given(count: int = 60, width: int = 7, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Rows around different means, of classes of different sizes."""
    labels = torch.arange(count).sqrt().long() % classes
    return random(count, width) * torch.linspace(0.2, 2, width) + random(classes, width, seed=1)[
        labels
    ], labels


def sums(rows: Tensor, labels: Tensor, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.nn.functional.one_hot(labels, classes).double()
    return rows.T @ rows, targets.T @ rows, targets.sum(0).long()


def test_whitened_golden() -> None:
    covariance = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    means = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    weight, bias, lengths = whitened(covariance, means, torch.tensor([0.5, 0.5], dtype=torch.float64), 0.5)
    # P = [[3, 1], [1, 3]]^-1 = [[3, -1], [-1, 3]] / 8, offsets (0.5, -0.5) and (-0.5, 1.5)
    assert_close(lengths, torch.tensor([0.25, 1.125]).double().sqrt())
    expected = (
        torch.tensor([[0.25, -0.375], [-0.25, 0.625]]).double() / torch.tensor([0.25, 1.125]).double().sqrt()
    )
    assert_close(weight, expected)
    assert_close(bias, -0.5 * expected.sum(0))


@pytest.mark.parametrize("share", [0.01, 0.3, 5.0])
def test_scores_are_cosines_of_whitened_images(share: float) -> None:
    rows, labels = given()
    covariance = within_covariance(*sums(rows, labels))
    means = torch.stack([rows[labels == label].mean(0) for label in range(4)])
    centred = rows - means[labels]
    assert_close(covariance, centred.T @ centred / len(rows))
    weight, bias, lengths = whitened(covariance, means, means.mean(0), share)
    values, vectors = torch.linalg.eigh(covariance + share * covariance.trace() / 7 * torch.eye(7).double())
    root = vectors @ (vectors / values.sqrt()).T
    images, classes = (rows - means.mean(0)) @ root, (means - means.mean(0)) @ root
    expected = torch.nn.functional.cosine_similarity(images[:, None], classes[None], dim=2)
    assert_close((rows @ weight + bias) / images.norm(dim=1, keepdim=True), expected)
    assert_close(lengths, classes.norm(dim=1))


@pytest.mark.parametrize(("count", "width"), [(60, 7), (30, 40)])
def test_strength_is_the_least_cross_validation_score(count: int, width: int) -> None:
    """Every lam of the grid, the hat matrix of centred images written out."""
    rows, labels = given(count, width)
    x, y = (part.numpy() - part.numpy().mean(0) for part in (rows, torch.eye(4).double()[labels]))
    scores = {}
    for factor in closed.LAMS:
        lam = factor * np.trace(x.T @ x) / width
        hat = x @ np.linalg.solve(x.T @ x + lam * np.eye(width), x.T)
        free = count - 1 - np.trace(hat)
        scores[lam] = np.square(y - hat @ y).sum() / free**2 if free >= 0.1 * (count - 1) else np.inf
    best = min(scores, key=lambda lam: scores[lam])
    gram, classes, counts = sums(rows, labels)
    variance = within_covariance(gram, classes, counts).diagonal().mean().item()
    assert strength(gram, classes, counts) == pytest.approx(best / (count * variance), rel=1e-6)


def test_fewer_images_than_features_are_never_all_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the least score has it now and then."""

    def left(seed: int) -> float:
        """Fraction of the degrees of freedom that the lam chosen leaves."""
        labels = torch.arange(100) % 10
        rows = 0.5 * random(10, 300, seed=seed)[labels] + random(100, 300, seed=100 + seed)
        rows = rows / torch.arange(1, 301).sqrt()
        x, y = rows - rows.mean(0), torch.eye(10).double()[labels] - 0.1
        lam = closed.best_lam(x.T @ x, x.T @ y, y.square().sum().item(), 99)
        values = torch.linalg.eigvalsh(x.T @ x)
        return 1 - (values / (values + lam)).sum().item() / 99

    assert min(map(left, range(10))) >= 0.1
    monkeypatch.setattr(closed, "FREE", 0.0)
    assert min(map(left, range(10))) < 0.1


def test_images_taken_out_leave_a_covariance_that_is_solved() -> None:
    rows, labels = given(60, 40)
    kept, counts = rows[:20], labels[:20].bincount(minlength=4)
    gram, classes, _ = sums(rows, labels)
    for row, label in zip(rows[20:].float() * (1 + 1e-6), labels[20:], strict=True):
        gram -= torch.outer(row.double(), row.double())
        classes[label] -= row.double()
    means = classes / counts[:, None]
    covariance = within_covariance(gram, classes, counts)
    assert torch.linalg.eigvalsh(covariance)[0] < 0
    weight, bias, _ = whitened(covariance, means, means.mean(0), 1e-9)
    assert (kept @ weight + bias).argmax(1).equal(labels[:20])


def test_ridge_of_centred_images_spans_the_same_directions() -> None:
    rows, labels = given()
    gram, classes, counts = sums(rows, labels)
    x, y = rows - rows.mean(0), torch.eye(4).double()[labels]
    lam = 3.0
    fitted = torch.linalg.solve(x.T @ x + lam * torch.eye(7).double(), x.T @ (y - y.mean(0)))
    means = classes / counts[:, None]
    covariance = within_covariance(gram, classes, counts)
    share = lam / 60 / covariance.diagonal().mean().item()
    weight, _, _ = whitened(covariance, means, means.mean(0), share)
    for one, other in ((fitted, weight), (weight, fitted)):
        left = other - one @ torch.linalg.lstsq(one, other, driver="gelsd").solution
        assert left.norm() < 1e-8 * other.norm()


def test_one_image_a_class_is_the_head_of_class_means() -> None:
    rows, labels = random(4, 7), torch.arange(4)
    found = sums(rows, labels)
    assert strength(*found) == MOST
    covariance = within_covariance(*found)
    assert torch.equal(covariance, torch.zeros(7, 7).double())
    weight, bias, _ = whitened(covariance, rows, rows.mean(0), MOST)
    offsets = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    tested = random(20, 7, seed=2)
    expected = ((tested - rows.mean(0)) @ offsets.T).argmax(1)
    assert torch.equal((tested @ weight + bias).argmax(1), expected)


def test_a_class_never_met_and_a_single_one() -> None:
    rows, labels = given()
    wide = sums(rows, labels, classes=6)
    assert strength(*wide) == pytest.approx(strength(*sums(rows, labels)), rel=1e-9)
    assert strength(*sums(rows, labels * 0)) == MOST
    means = torch.stack([rows.mean(0)])
    weight, bias, lengths = whitened(within_covariance(*sums(rows, labels * 0)), means, means[0], 1.0)
    assert weight.isfinite().all()
    assert bias.tolist() == lengths.tolist() == [0.0]


def test_a_mean_at_the_centre_but_for_rounding_has_no_direction() -> None:
    """Whatever the order in which its images were added."""
    ends = random(2, 7)
    means = torch.stack([*ends, (ends[0] / 3 + ends[1] / 3) * 1.5])
    assert (means[2] - means.mean(0)).any()
    weight, bias, lengths = whitened(random(7, 7) @ random(7, 7).T, means, means.mean(0), 1.0)
    assert (lengths > 0).tolist() == [True, True, False]
    assert not weight[:, 2].any()
    assert bias[2] == 0


def test_features_that_are_not_finite_are_refused() -> None:
    gram, classes, counts = sums(*given())
    with pytest.raises(RunError, match="not finite"):
        strength(gram * torch.nan, classes, counts)
