"""The estimators: in the logarithm, across tasks, at extremes, and shared by processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from everclip.losses import contrastive
from everclip.losses.contrastive import Negatives, PairLoss
from everclip.methods.base.sample_table import SampleTable
from tests.losses.pairs import everyone_else, features, golden, grad


def test_log_domain_average_equals_the_plain_one() -> None:
    random = torch.Generator().manual_seed(0)
    gamma, tau = 0.3, 0.1
    plain = torch.zeros(16, 2, dtype=torch.float64)
    log_u, seen = torch.zeros(16, 2), torch.zeros(16, 1, dtype=torch.bool)
    for step in range(20):
        image, text = features(step, 16, dtype=torch.float32)
        losses = contrastive.differences(image @ text.T)
        fresh = contrastive.log_means(losses, everyone_else(16), tau)
        visited = torch.rand(16, 1, generator=random) < 0.6
        first = visited & ~seen
        g = fresh.double().exp()
        plain = torch.where(first, g, torch.where(visited, (1 - gamma) * plain + gamma * g, plain))
        log_u = torch.where(visited, contrastive.moving_average(log_u, seen, fresh, gamma), log_u)
        seen |= visited
    assert seen.all()
    torch.testing.assert_close(log_u.double().exp(), plain, atol=0, rtol=2e-5)
    torch.testing.assert_close(log_u.double(), plain.log(), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "margin"), [("identity", 0.0), ("squared_hinge", 1.0)])
@pytest.mark.parametrize("tau", [0.005, 0.05])
def test_extreme_similarities_stay_finite(name: PairLoss, margin: float, tau: float) -> None:
    """Differences of +-2: exponents of 400 and 1800 at tau 0.005, of 180 at tau 0.05 and margin 1."""
    image, text = features(0, 8, dtype=torch.float32)
    worst = torch.where(torch.eye(8, dtype=torch.bool), -1.0, 1.0)
    seen = torch.ones(8, 1, dtype=torch.bool)
    old = torch.zeros(8, 2)
    for s in ((image @ text.T).detach(), worst, -worst, worst, torch.zeros(8, 8)):
        s = s.clone().requires_grad_()
        d1, d2 = contrastive.differences(s)
        losses = (contrastive.pair_loss(d1, name, margin), contrastive.pair_loss(d2, name, margin))
        among = everyone_else(8)
        old = contrastive.moving_average(old, seen, contrastive.log_means(losses, among, tau), 0.8)
        value = contrastive.surrogate(losses, old, among, tau)
        assert old.isfinite().all()
        assert value.isfinite()
        assert grad(value, s).isfinite().all()


def test_weights_of_a_row_sum_to_at_most_one_over_gamma() -> None:
    s = torch.where(torch.eye(4, dtype=torch.bool), -1.0, 1.0).requires_grad_()
    losses, among = contrastive.differences(s), everyone_else(4)
    fresh = contrastive.log_means(losses, among, 0.005)
    tiny = torch.full((4, 2), -400.0)
    log_u = contrastive.moving_average(tiny, torch.ones(4, 1, dtype=torch.bool), fresh, 0.25)
    value = contrastive.surrogate((losses[0], torch.zeros(4, 4)), log_u, among, 0.005)
    (g,) = torch.autograd.grad(value, s)
    assert (-4 * g.diagonal()).tolist() == pytest.approx([4.0] * 4, rel=1e-4)


def test_first_visit_and_broken_values_take_the_fresh_value() -> None:
    fresh = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    old = torch.tensor([[9.0], [9.0], [-math.inf], [math.inf], [math.nan]])
    seen = torch.tensor([[False], [True], [True], [True], [True]])
    found = contrastive.moving_average(old, seen, fresh, 0.5)[:, 0].tolist()
    middle = math.log(0.5 * math.exp(9) + 0.5 * math.exp(2))
    assert found == pytest.approx([1.0, middle, 3.0, 4.0, 5.0], rel=1e-6)


def test_gamma_one_is_the_fresh_value_bit_by_bit() -> None:
    fresh = torch.randn(50, 2)
    old = torch.randn(50, 2) * 100
    found = contrastive.moving_average(old, torch.ones(50, 1, dtype=torch.bool), fresh, 1.0)
    assert torch.equal(found, fresh)


def test_gamma_may_differ_by_sample() -> None:
    old, fresh = torch.randn(6, 2), torch.randn(6, 2)
    seen = torch.ones(6, 1, dtype=torch.bool)
    gamma = torch.tensor([0.1, 0.5, 1.0, 0.1, 0.5, 1.0])[:, None]
    found = contrastive.moving_average(old, seen, fresh, gamma)
    for i, rate in enumerate(gamma[:, 0].tolist()):
        one = contrastive.moving_average(old[i : i + 1], seen[i : i + 1], fresh[i : i + 1], rate)
        torch.testing.assert_close(found[i : i + 1], one)


@settings(deadline=None)
@given(old=st.floats(-1000, 1000), fresh=st.floats(-1000, 1000), gamma=st.floats(0.01, 1))
def test_average_lies_between_old_and_fresh(old: float, fresh: float, gamma: float) -> None:
    tensor = torch.tensor([[old, fresh]], dtype=torch.float64)
    found = contrastive.moving_average(
        tensor[:, :1], torch.ones(1, 1, dtype=torch.bool), tensor[:, 1:], gamma
    )
    assert min(old, fresh) - 1e-9 <= found.item() <= max(old, fresh) + 1e-9


def test_an_exemplar_keeps_its_average_across_tasks() -> None:
    """Ids 7 and 9 come from the first task; in a batch of the next one they mix, a new id starts afresh."""
    table, gamma, tau = SampleTable(2), 0.8, 0.1
    losses = contrastive.differences(golden())
    among = everyone_else(3)
    table.set([7, 8, 9], contrastive.log_means(losses, among, tau))
    before, _ = table.get([9, 7])

    image, text = features(9, 3)
    fresh = contrastive.log_means(contrastive.differences(image @ text.T), among, tau)
    old, seen = table.get([9, 20, 7])
    assert seen.tolist() == [True, False, True]
    table.set([9, 20, 7], contrastive.moving_average(old.to(fresh), seen[:, None], fresh, gamma))

    now, _ = table.get([9, 20, 7])
    g = fresh.exp().float()
    torch.testing.assert_close(now[1].exp(), g[1])
    torch.testing.assert_close(now[[0, 2]].exp(), (1 - gamma) * before.exp() + gamma * g[[0, 2]])
    assert not torch.allclose(now[[0, 2]].exp(), g[[0, 2]])


@pytest.mark.parametrize("kind", ["instance", "other_class", "multi_positive"])
def test_two_processes_give_the_gradient_of_one(kind: Negatives) -> None:
    """Each has the anchors of its half and all columns; the mean of their gradients is the whole one."""
    image, text = features(10, 8)
    labels = torch.tensor([0, 1, 1, 2, 0, 3, 3, 2])
    tau = torch.linspace(0.05, 0.2, 8, dtype=torch.float64)
    omega = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    old = torch.linspace(-1, 1, 16, dtype=torch.float64).view(8, 2)
    seen = torch.arange(8) % 3 > 0

    def gradient(rows: slice) -> tuple[Tensor, Tensor]:
        among = contrastive.negatives(labels, kind)
        d1, d2 = contrastive.differences(image @ text.T, ~among if kind == "multi_positive" else None)
        losses = (contrastive.squared_hinge(d1, 0.5)[rows], contrastive.squared_hinge(d2, 0.5)[rows])
        fresh = contrastive.log_means(losses, among[rows], tau[rows])
        log_u = contrastive.moving_average(old[rows], seen[rows, None], fresh, 0.6)
        value = contrastive.surrogate(losses, log_u, among[rows], tau[rows], omega[rows])
        return grad(value, image, text), log_u

    whole, log_u = gradient(slice(None))
    first, second = gradient(slice(0, 4)), gradient(slice(4, 8))
    torch.testing.assert_close((first[0] + second[0]) / 2, whole, atol=1e-13, rtol=1e-10)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), log_u)
    assert not torch.allclose(first[0], whole)
