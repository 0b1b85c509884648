"""GCL: golden numbers, a reference by autograd, and what its moving averages carry over."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from everclip.methods.gcl import Gcl
from tests.methods.plain import PROMPTS, batch, cosines, log_means, saved, similarity, step

TAU = 0.1
Negatives = Literal["instance", "other_class", "multi_positive"]


def gcl(gamma: float = 1.0, negatives: Negatives = "instance", tau: float = TAU) -> Gcl:
    return Gcl(Gcl.Config(tau=tau, gamma=gamma, negatives=negatives), PROMPTS)


def log_g(s: Tensor, among: Tensor) -> Tensor:
    """log g1 and log g2 of a batch, ``[b, 2]``, with gradient."""
    own = s.diagonal()[:, None]
    return torch.stack([log_means(s - own, among, TAU), log_means(s.T - own, among, TAU)], 1)


def others(count: int) -> Tensor:
    return ~torch.eye(count, dtype=torch.bool)


def averages(method: Gcl, *ids: int) -> Tensor:
    """u1 and u2 of samples that were seen."""
    log_u, seen = method.estimators.get(ids)
    assert seen.all()
    return log_u.double().exp()


def test_golden_objective() -> None:
    value, _ = step(gcl(), similarity(), batch([0, 1, 2]))
    assert value.item() == pytest.approx(-0.4026047803, abs=1e-10)


def test_gradient_without_a_past_is_that_of_the_objective() -> None:
    """And so tau times the gradient of InfoNCE without the positive in the denominator, both directions."""
    s = cosines(6, 0)
    value, gradient = step(gcl(), s, batch([0, 1, 2, 0, 1, 2]))
    leaf = s.clone().requires_grad_()
    objective = TAU * log_g(leaf, others(6)).sum(1).mean()
    (expected,) = torch.autograd.grad(objective, leaf)
    assert_close(value, objective.detach(), atol=1e-12, rtol=0)
    assert_close(gradient, expected, atol=1e-12, rtol=0)

    logits = [(m / TAU).masked_fill(~others(6), -math.inf).logsumexp(1) for m in (leaf, leaf.T)]
    infonce = (logits[0] + logits[1] - 2 * leaf.diagonal() / TAU).mean()
    assert_close(gradient, TAU * torch.autograd.grad(infonce, leaf)[0], atol=1e-12, rtol=0)


def test_value_is_the_objective_and_gradient_the_estimate() -> None:
    """With a past the gradient is mean_i sum_sides tau grad g_i / u_i: the updated u divides."""
    gamma, on = 0.3, batch([0, 1, 2, 3, 4])
    method = gcl(gamma)
    step(method, cosines(5, 1), on)
    old = averages(method, *range(5))
    s = cosines(5, 2)
    value, gradient = step(method, s, on)

    leaf = s.clone().requires_grad_()
    g = log_g(leaf, others(5)).exp()
    u = (1 - gamma) * old + gamma * g.detach()
    assert_close(value, TAU * u.log().sum(1).mean(), atol=1e-7, rtol=0)
    (expected,) = torch.autograd.grad(TAU * (g / u).sum(1).mean(), leaf)
    assert_close(gradient, expected, atol=1e-6, rtol=0)
    (batch_only,) = torch.autograd.grad(TAU * log_g(leaf, others(5)).sum(1).mean(), leaf)
    assert (gradient - batch_only).abs().max() > 1e-3


def test_an_exemplar_carries_its_average_into_the_next_task() -> None:
    """Its u becomes (1 - gamma) u + gamma g in the first batch of task 2; new images in that batch take g."""
    gamma, method = 0.8, gcl(0.8)
    step(method, cosines(4, 0), batch([0, 0, 1, 1], [10, 11, 12, 13]))
    method.drop(np.array([10, 12, 13]))  # the memory kept image 11
    old = averages(method, 11)[0]

    s = cosines(3, 1)
    step(method, s, batch([2, 0, 2], [20, 11, 21]))
    g = log_g(s, others(3)).exp()
    assert_close(averages(method, 11)[0], (1 - gamma) * old + gamma * g[1], atol=0, rtol=1e-5)
    assert (averages(method, 11)[0] / g[1] - 1).abs().min() > 0.01
    assert_close(averages(method, 20, 21), g[[0, 2]], atol=0, rtol=1e-5)


def test_dropped_images_are_unseen_again() -> None:
    method = gcl(0.5)
    step(method, cosines(3, 0), batch([0, 1, 2], [7, 8, 9]))
    assert method.state_bytes() == 3 * 16
    method.drop(np.array([7, 9]))
    assert method.estimators.ids().tolist() == [8]
    assert method.state_bytes() == 16
    s = cosines(3, 1)
    step(method, s, batch([0, 1, 2], [7, 8, 9]))
    assert_close(averages(method, 7, 9), log_g(s, others(3)).exp()[[0, 2]], atol=0, rtol=1e-5)


def test_estimators_belong_to_ids_and_not_to_places() -> None:
    first, second = gcl(0.5), gcl(0.5)
    s, shuffled = cosines(4, 0), torch.tensor([2, 0, 3, 1])
    step(first, s, batch([0, 1, 2, 3], [5, 6, 7, 8]))
    step(second, s[shuffled][:, shuffled], batch([2, 0, 3, 1], [7, 5, 8, 6]))
    assert_close(averages(first, 5, 6, 7, 8), averages(second, 5, 6, 7, 8), atol=0, rtol=1e-6)


@pytest.mark.parametrize("negatives", ["other_class", "multi_positive"])
def test_a_batch_of_one_class_changes_nothing(negatives: Negatives) -> None:
    method = gcl(0.5, negatives)
    value, gradient = step(method, cosines(3, 0), batch([4, 4, 4]))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(3, 3, dtype=torch.float64))
    assert len(method.estimators) == 0
    assert method.diagnostics() == {}


def test_a_batch_of_one_image_changes_nothing() -> None:
    value, gradient = step(gcl(), cosines(1, 0), batch([0]))
    assert (value, gradient) == (0, 0)


def test_negatives_of_other_classes_alone() -> None:
    on, s = batch([0, 0, 1, 1, 1]), cosines(5, 3)
    among = on.labels[:, None] != on.labels
    value, _ = step(gcl(negatives="other_class"), s, on)
    assert_close(value, TAU * log_g(s, among).sum(1).mean(), atol=1e-12, rtol=0)

    value, _ = step(gcl(negatives="multi_positive"), s, on)
    own = [torch.stack([m[i, ~among[i]].mean() for i in range(5)])[:, None] for m in (s, s.T)]
    sides = [log_means(m - p, among, TAU) for m, p in zip((s, s.T), own, strict=True)]
    assert_close(value, TAU * (sides[0] + sides[1]).mean(), atol=1e-12, rtol=0)


def test_diagnostics_are_of_the_last_step() -> None:
    method, s = gcl(), cosines(4, 0)
    step(method, cosines(4, 1), batch([0, 1, 2, 3]))
    step(method, s, batch([0, 1, 2, 3]))
    log_u = log_g(s, others(4))
    expected = {"log_u_mean": log_u.mean().item(), "log_u_max": log_u.max().item()}
    assert method.diagnostics() == pytest.approx(expected, abs=1e-10)


def test_restored_method_takes_a_bit_equal_step() -> None:
    method, copy, fresh = gcl(0.4), gcl(0.4), gcl(0.4)
    on = batch([0, 1, 2, 0], [3, 5, 2**62, 7])
    step(method, cosines(4, 0), on)
    copy.load_state_dict(saved(method.state_dict()))
    value, gradient = step(method, cosines(4, 1), on)
    again, same = step(copy, cosines(4, 1), on)
    assert torch.equal(value, again)
    assert torch.equal(gradient, same)
    assert step(fresh, cosines(4, 1), on)[0] != value


@pytest.mark.parametrize("option", [{"gamma": 0.0}, {"gamma": 1.1}, {"tau": 0.0}, {"negatives": "none"}])
def test_refused_options(option: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Gcl.Config.model_validate(option)


def test_libauc_scales_the_same_gradient() -> None:
    """Its bimodal GCL sums over the negatives and halves the sum of the sides: (B - 1) / 2 times ours."""
    s, own = cosines(5, 0), torch.eye(5, dtype=torch.bool)
    leaf = s.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for difference in (leaf - leaf.diagonal()[:, None], leaf.T - leaf.diagonal()[:, None]):
        exponential = (difference.detach() / TAU).exp().masked_fill(own, 0)
        u = exponential.sum(1, keepdim=True) / 4
        total = total + (exponential / u * difference).sum(1).mean() / 2
    (libauc,) = torch.autograd.grad(total, leaf)
    assert_close(libauc, (5 - 1) / 2 * step(gcl(), s, batch([0, 1, 2, 3, 4]))[1], atol=1e-12, rtol=0)
