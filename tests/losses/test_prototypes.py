"""Contrast with prototypes against golden numbers, loops, and what importance weights are for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.losses import prototypes
from everclip.losses.distill import distillation
from tests.losses.test_supcon import at, random

C, Z, Y = at(0, 60, 120), at(10, 70, 100, 130), torch.tensor([0, 1, 2, 2])
P = torch.tensor([0.25, 0.1, 0.0, 0.0], dtype=torch.float64)
OLD = torch.tensor([True, True, False, False])
ONES = torch.ones(3, 4, dtype=torch.float64)


def naive(logits: Tensor, target: Tensor, weights: Tensor) -> float:
    """The definition, one image at a time."""
    total = 0.0
    for i, k in enumerate(target.tolist()):
        inner = sum(math.exp(logits[j, k]) / float(weights[k, j]) for j in range(len(target)))
        total += math.log(inner) - float(logits[i, k])
    return total / len(target)


def test_golden_contrast() -> None:
    """methods-more.md 11.1."""
    weights = prototypes.importance(Y, Y, OLD, P, 2, 3)
    logits = Z @ C.T / 0.5
    assert prototypes.prototype_contrast(logits, Y, weights).item() == pytest.approx(1.1616338324, abs=1e-10)
    assert prototypes.prototype_contrast(logits, Y, ONES).item() == pytest.approx(0.7866106818, abs=1e-10)


def test_golden_relations_to_old_prototypes() -> None:
    past = at(15, 65, 95, 125) @ at(5, 55).T / 0.1
    assert distillation(past, Z @ C[:2].T / 0.2, 1.0).item() == pytest.approx(0.1056890924, abs=1e-10)


def test_golden_scores() -> None:
    scores = prototypes.draw_scores(Z @ C.T / 0.5, Y)
    golden = [0.1181058406, 0.1991675224, 0.1678932700, 0.0706119753]
    assert scores.tolist() == pytest.approx(golden, abs=1e-10)
    assert prototypes.shares(scores, Y).tolist() == pytest.approx(
        [1, 1, 0.7039395289, 0.2960604711], abs=1e-10
    )


def test_contrast_is_the_definition() -> None:
    target = torch.tensor([0, 2, 1, 1, 4, 0, 2])
    exemplar = torch.tensor([True, False, True, True, False, True, True])
    drawn = torch.linspace(0.1, 0.7, 7, dtype=torch.float64)
    groups = torch.tensor([0, 2, 1, 6, 4, 0, 2])  # the two exemplars of class 1 are from two domains
    weights = prototypes.importance(target, groups, exemplar, drawn, 3, 5)
    for k in range(5):
        for j in range(7):
            applies = k < 3 and exemplar[j] and target[j] != k
            met = sum(bool(exemplar[i] and groups[i] == groups[j]) for i in range(7))
            assert weights[k, j].item() == pytest.approx(met * float(drawn[j]) if applies else 1.0)
    logits = random(7, 0) @ random(5, 1).T / 0.3
    loss = prototypes.prototype_contrast(logits, target, weights)
    assert loss.item() == pytest.approx(naive(logits, target, weights))


def test_importance_weights_estimate_the_sum_over_the_class() -> None:
    """Draws in proportion to the scores, divided by their probability, have the class's own sum as their mean."""
    logits = random(60, 2) @ random(1, 3)[0] / 0.3
    truth = logits.exp().sum().item()
    p = (logits.exp() + 1) / (logits.exp() + 1).sum()
    drawn = torch.multinomial(p, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimates = logits[drawn].exp() / p[drawn]
    uniform = 60 * logits[torch.randint(60, (20_000,), generator=torch.Generator().manual_seed(0))].exp()
    assert estimates.mean().item() == pytest.approx(truth, rel=0.02)
    assert estimates.std() < uniform.std() / 2


def test_one_class_scores_alike() -> None:
    assert_close(prototypes.draw_scores(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)), torch.ones(3))


def test_a_probability_too_small_for_fp32_leaves_the_loss_finite() -> None:
    logits, target = random(3, 0) @ random(2, 1).T, torch.tensor([0, 0, 1])
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.isfinite(prototypes.prototype_contrast(logits, target, weights))
