"""GDRO: golden numbers, a reference by autograd, and how classes gain and lose weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.scenario import Task
from everclip.losses import contrastive
from everclip.methods.gcl import Gcl
from everclip.methods.gdro import Gdro
from everclip.models.clip import Clip
from tests.methods.plain import PROMPTS, batch, cosines, images, log_means, saved, similarity, step

TAU, MARGIN = 0.1, 0.3


def gdro(clip: Clip, labels: list[int], **options: Any) -> Gdro:
    """The method at the start of a task whose images, new and memory, have these labels."""
    given = {"tau": TAU, "gamma": 1.0, "gamma_class": 1.0, "margin": MARGIN} | options
    method = Gdro(Gdro.Config.model_validate(given), PROMPTS)
    begin(method, clip, labels)
    return method


def begin(method: Gdro, clip: Clip, labels: list[int]) -> None:
    train = images(labels)
    method.begin_task(clip, Task(0, "task 1", tuple(sorted(set(labels))), train, train), train)


def per_image(s: Tensor, labels: Tensor) -> Tensor:
    """l_i by the definition, with gradient."""
    among, own = labels[:, None] != labels, s.diagonal()[:, None]
    sides = [(MARGIN + m - own).clamp(min=0) ** 2 for m in (s, s.T)]
    return TAU * (log_means(sides[0], among, TAU) + log_means(sides[1], among, TAU))


def class_losses(method: Gdro, *labels: int) -> list[float]:
    """s_k of classes that have one."""
    values, seen = method.groups.losses.get(labels)
    assert seen.all()
    return values[:, 0].tolist()


@pytest.mark.parametrize(
    ("strength", "objective", "p"),
    [
        (0.01, 0.0176790168, [0.22401352, 0.77598648]),
        (0.1, 0.0160549730, [0.46897918, 0.53102082]),
        (1.0, 0.0158814386, [0.49689397, 0.50310603]),
    ],
)
def test_golden(clip: Clip, strength: float, objective: float, p: list[float]) -> None:
    """The classes' losses are kept in fp32."""
    method = gdro(clip, [0, 0, 1], strength=strength)
    value, _ = step(method, similarity(), batch([0, 0, 1]))
    assert class_losses(method, 0, 1) == pytest.approx([0.00965, 0.02207429], abs=1e-8)
    assert method.class_weights() == pytest.approx(dict(enumerate(p)), abs=2e-7)
    assert value.item() == pytest.approx(objective, abs=2e-7)


def test_whole_training_set_as_a_batch_has_the_gradient_of_the_objective(clip: Clip) -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    s, strength = cosines(6, 0), 0.02
    value, gradient = step(gdro(clip, labels.tolist(), strength=strength), s, batch(labels.tolist()))
    leaf = s.clone().requires_grad_()
    losses = per_image(leaf, labels)
    groups = torch.stack([losses[labels == k].mean() for k in range(3)])
    objective = strength * (groups / strength).exp().mean().log()
    (expected,) = torch.autograd.grad(objective, leaf)
    assert_close(value, objective.detach(), atol=1e-6, rtol=0)
    assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    assert (gradient - torch.autograd.grad(per_image(leaf, labels).mean(), leaf)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("groups", ["class", "class_origin"])
def test_weights_of_the_batch_alone(clip: Clip, groups: str) -> None:
    """sum_k q_k mean_i v_i over the groups of the batch, q their softmax; absent classes have no part in it."""
    train, strength = [0] * 30 + [1] * 30 + [2] + [3], 0.05
    method = gdro(clip, train, strength=strength, omega="batch", groups=groups)
    step(
        method, cosines(3, 1), batch([0, 2, 3])
    )  # class 3 has a loss of its own, and is not in the next batch
    labels = torch.tensor([0, 0, 0, 1, 2])
    s = cosines(5, 2)
    _, gradient = step(method, s, batch(labels.tolist()))
    leaf = s.clone().requires_grad_()
    losses = per_image(leaf, labels)
    means = torch.stack([losses[labels == k].mean() for k in range(3)])
    q = (means.detach() / strength).softmax(0)
    (expected,) = torch.autograd.grad((q * means).sum(), leaf)
    assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


def test_an_exemplar_counts_no_more_than_its_class_in_the_batch(clip: Clip) -> None:
    """The unbiased weight of one exemplar among 30 new images for each of two classes is far above theirs."""
    labels = torch.tensor([0, 0, 0, 1, 2])
    found = {}
    for omega in ("unbiased", "batch"):
        method = gdro(clip, [0] * 30 + [1] * 30 + [2], omega=omega, strength=100.0)
        step(method, cosines(5, 2), batch(labels.tolist()))
        found[omega] = method.groups.weights(labels, labels).tolist()
    assert found["unbiased"][-1] / found["unbiased"][0] == pytest.approx(30, rel=1e-2)
    assert found["batch"][-1] / found["batch"][0] == pytest.approx(3, rel=1e-2)


def test_value_is_the_objective_and_gradient_the_estimate(clip: Clip) -> None:
    """A batch of an unbalanced set, with a past: mean_i n p_{y_i} / n_{y_i} sum_sides tau grad g_i / u_i."""
    train, rate = [0] * 6 + [1] * 2 + [2] * 4, 0.5
    labels, strength = torch.tensor([0, 0, 1, 2]), 0.05
    method = gdro(clip, train, strength=strength, gamma=rate, gamma_class=0.25)
    on = batch(labels.tolist())
    step(method, cosines(4, 1), on)
    old, old_class = method.estimators.get(on.ids)[0].double().exp(), class_losses(method, 0, 1, 2)
    s = cosines(4, 2)
    value, gradient = step(method, s, on)

    leaf = s.clone().requires_grad_()
    among, own = labels[:, None] != labels, leaf.diagonal()[:, None]
    sides = [(MARGIN + m - own).clamp(min=0) ** 2 for m in (leaf, leaf.T)]
    g = torch.stack([log_means(side, among, TAU) for side in sides], 1).exp()
    u = (1 - rate) * old + rate * g.detach()
    l_hat = TAU * u.log().sum(1)
    means = torch.stack([l_hat[labels == k].mean() for k in range(3)])
    s_k = 0.75 * torch.tensor(old_class, dtype=torch.float64) + 0.25 * means
    p = (s_k / strength).softmax(0)
    omega = (12 * p / torch.tensor([6, 2, 4]))[labels]
    assert_close(value, strength * (s_k / strength).exp().mean().log(), atol=1e-6, rtol=0)
    assert class_losses(method, 0, 1, 2) == pytest.approx(s_k.tolist(), abs=1e-7)
    (expected,) = torch.autograd.grad(TAU * (omega[:, None] * g / u).sum(1).mean(), leaf)
    assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


def test_a_class_outside_the_batch_keeps_its_loss(clip: Clip) -> None:
    method = gdro(clip, [0, 1, 2, 3], gamma_class=0.5)
    step(method, cosines(4, 0), batch([0, 1, 2, 3]))
    before = class_losses(method, 0, 1, 2, 3)
    step(method, cosines(2, 1), batch([0, 2], [0, 2]))
    after = class_losses(method, 0, 1, 2, 3)
    assert (after[1], after[3]) == (before[1], before[3])
    assert after[0] != before[0]
    assert after[2] != before[2]


def test_a_class_whose_loss_rises_gains_weight(clip: Clip) -> None:
    method = gdro(clip, [0, 1, 2], strength=0.05)
    easy = torch.full((3, 3), 0.1, dtype=torch.float64).fill_diagonal_(0.3)
    step(method, easy, batch([0, 1, 2]))
    assert method.class_weights() == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, abs=1e-6)
    hard = easy.clone()
    hard[1, 1] = 0.0
    step(method, hard, batch([0, 1, 2]))
    p = method.class_weights()
    assert p[1] > 0.4
    assert p[0] < 1 / 3
    assert sum(p.values()) == pytest.approx(1, abs=1e-6)
    assert method.diagnostics()["weight_max"] == pytest.approx(p[1])
    entropy = -sum(value * math.log(value) for value in p.values()) / math.log(3)
    assert method.diagnostics()["weight_entropy"] == pytest.approx(entropy, abs=1e-6)


def test_weights_are_shared_by_the_classes_that_have_images_and_a_loss(clip: Clip) -> None:
    """Class 5 lost its exemplars, class 3 was in no batch yet: neither has a share; class 0 is remembered."""
    method = gdro(clip, [0, 5])
    step(method, cosines(2, 0), batch([0, 5]))
    kept = class_losses(method, 0, 5)
    begin(method, clip, [0, 1, 2, 3])
    step(method, cosines(2, 1), batch([1, 2], [1, 2]))
    p = method.class_weights()
    assert set(p) == {0, 1, 2, 3}
    assert p[3] == 0
    assert min(p[0], p[1], p[2]) > 0
    assert sum(p.values()) == pytest.approx(1, abs=1e-6)
    assert class_losses(method, 0, 5) == kept


def test_first_visit_of_a_class_takes_its_batch_mean(clip: Clip) -> None:
    method, fresh = gdro(clip, [0, 1, 2, 3], gamma_class=0.1), gdro(clip, [0, 1, 2, 3])
    step(method, cosines(2, 0), batch([0, 1]))
    s = cosines(2, 1)
    step(method, s, batch([2, 3], [2, 3]))
    step(fresh, s, batch([2, 3], [2, 3]))
    assert class_losses(method, 2, 3) == class_losses(fresh, 2, 3)


def test_dropped_images_are_unseen_again_and_classes_are_remembered(clip: Clip) -> None:
    method = gdro(clip, [0, 1, 2], gamma=0.5)
    step(method, cosines(3, 0), batch([0, 1, 2], [7, 8, 9]))
    before = class_losses(method, 0, 1, 2)
    assert method.state_bytes() == 3 * 16 + 3 * 12
    method.drop(np.array([7, 9]))
    assert method.estimators.ids().tolist() == [8]
    assert class_losses(method, 0, 1, 2) == before
    s = cosines(3, 1)
    step(method, s, batch([0, 1, 2], [7, 8, 9]))
    l_i = per_image(s, torch.tensor([0, 1, 2]))
    l_hat = TAU * method.estimators.get([7, 8, 9])[0].double().sum(1)
    assert_close(l_hat[[0, 2]], l_i[[0, 2]], atol=1e-7, rtol=0)
    assert abs(l_hat[1] - l_i[1]) > 1e-4


@pytest.mark.parametrize("strength", [1e2, 1e4])
def test_large_lambda_weighs_classes_equally(clip: Clip, strength: float) -> None:
    """Then F is the mean of the classes' losses, whatever their sizes."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    method, s = gdro(clip, labels.tolist(), strength=strength), cosines(6, 0)
    value, _ = step(method, s, batch(labels.tolist()))
    losses = per_image(s, labels)
    means = [losses[labels == k].mean().item() for k in range(3)]
    assert max(means) - min(means) > 0.01
    assert method.class_weights() == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, abs=1e-3)
    assert value.item() == pytest.approx(sum(means) / 3, rel=1e-4 + 0.02 / strength)


def test_small_lambda_takes_the_worst_class_alone(clip: Clip) -> None:
    method, s = gdro(clip, [0, 1, 2], strength=1e-4), cosines(3, 0)
    value, _ = step(method, s, batch([0, 1, 2]))
    losses = per_image(s, torch.arange(3))
    assert method.class_weights()[int(losses.argmax())] == pytest.approx(1, abs=1e-6)
    assert value.item() == pytest.approx(losses.max().item(), abs=2e-4)


def test_beyond_the_margin_nothing_is_left_to_learn(clip: Clip) -> None:
    """Every negative is m below its positive: zero loss and zero gradient. A bit closer, and some is left."""
    s = torch.full((4, 4), 0.25, dtype=torch.float64).fill_diagonal_(0.25 + MARGIN)
    value, gradient = step(gdro(clip, [0, 1, 2, 3]), s, batch([0, 1, 2, 3]))
    assert value.item() == pytest.approx(0, abs=1e-8)
    assert torch.equal(gradient, torch.zeros_like(s))
    s[0, 0] -= 0.1
    value, gradient = step(gdro(clip, [0, 1, 2, 3]), s, batch([0, 1, 2, 3]))
    assert value > 1e-3
    assert gradient[0, 0] < 0


def test_a_batch_of_one_class_changes_nothing(clip: Clip) -> None:
    method = gdro(clip, [0, 1, 1])
    value, gradient = step(method, cosines(2, 0), batch([1, 1]))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 2, dtype=torch.float64))
    assert (len(method.estimators), len(method.groups.losses)) == (0, 0)
    assert method.class_weights() == {0: 0, 1: 0}


def test_reduces_to_gcl(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the identity for the hinge, one image a class and lambda -> infinity."""
    monkeypatch.setattr(contrastive, "squared_hinge", lambda difference, margin: difference)
    s, on = cosines(5, 0), batch([0, 1, 2, 3, 4])
    value, gradient = step(gdro(clip, [0, 1, 2, 3, 4], strength=1e4), s, on)
    expected, same = step(Gcl(Gcl.Config(tau=TAU, gamma=1.0, negatives="instance"), PROMPTS), s, on)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close(gradient, same, atol=1e-4, rtol=0)


def test_restored_method_takes_a_bit_equal_step(clip: Clip) -> None:
    train = [0, 0, 1, 2]
    options = {"gamma": 0.4, "gamma_class": 0.3, "strength": 0.02}
    method, copy, fresh = (gdro(clip, train, **options) for _ in range(3))
    on = batch(train, [3, 5, 2**62, 7])
    step(method, cosines(4, 0), on)
    copy.load_state_dict(saved(method.state_dict()))
    value, gradient = step(method, cosines(4, 1), on)
    again, same = step(copy, cosines(4, 1), on)
    assert torch.equal(value, again)
    assert torch.equal(gradient, same)
    assert method.class_weights() == copy.class_weights()
    assert step(fresh, cosines(4, 1), on)[0] != value


def test_class_losses_are_means_since_the_last_call(clip: Clip) -> None:
    method, labels = gdro(clip, [0, 0, 1, 5]), torch.tensor([0, 0, 1])
    expected = per_image(similarity(), labels)
    step(method, similarity(), batch([0, 0, 1]))
    step(method, similarity(), batch([0, 0, 1], ids=[3, 4, 5]))
    losses = method.class_losses()
    assert losses == pytest.approx({0: expected[:2].mean().item(), 1: expected[2].item()}, abs=1e-7)
    assert method.class_losses() == {}
    step(method, similarity(), batch([1, 1, 1]))
    assert method.class_losses() == {}, "a pair without negatives has no loss"
