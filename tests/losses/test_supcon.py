"""Contrastive losses of images against golden numbers, loops, and their own properties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from everclip.losses import supcon
from everclip.losses.contrastive import clip_loss


def at(*degrees: float) -> Tensor:
    """fp64 unit vectors at these angles."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def random(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 5, dtype=torch.float64, generator=generator), dim=1)


def naive(z: Tensor, labels: Sequence[int], tau: float, anchors: Sequence[int]) -> float:
    """The definition, one pair at a time."""
    s, total = (z @ z.T / tau).tolist(), 0.0
    for i in anchors:
        log_sum = math.log(sum(math.exp(s[i][a]) for a in range(len(z)) if a != i))
        own = [log_sum - s[i][p] for p in range(len(z)) if p != i and labels[p] == labels[i]]
        total += sum(own) / len(own) if own else 0.0
    return total / len(z)


def test_others_leaves_out_the_diagonal() -> None:
    assert supcon.others(torch.arange(9).view(3, 3)).tolist() == [[1, 2], [3, 5], [6, 7]]
    assert supcon.others(torch.zeros(1, 1)).shape == (1, 0)


@pytest.mark.parametrize(("current", "golden"), [([2, 3], 0.1494260457), ([0, 1, 2, 3], 0.2828275608)])
def test_golden_asymmetric(current: list[int], golden: float) -> None:
    """methods.md 4.4: old images are contrasts, and count as zeros in the mean."""
    labels = torch.tensor([0, 0, 1, 1])
    anchors = torch.zeros(4, dtype=torch.bool)
    anchors[current] = True
    loss = supcon.supervised(at(0, 20, 90, 120), labels, 0.5, anchors)
    assert loss.item() == pytest.approx(golden, abs=1e-10)


def test_supervised_is_the_definition() -> None:
    z, labels = random(9, 0), [0, 0, 1, 2, 1, 0, 3, 2, 2]
    anchors = torch.tensor([n % 2 == 0 for n in range(9)])
    for chosen, which in ((None, range(9)), (anchors, range(0, 9, 2))):
        loss = supcon.supervised(z, torch.tensor(labels), 0.1, chosen)
        assert loss.item() == pytest.approx(naive(z, labels, 0.1, list(which)), abs=1e-12)


def test_without_anchors_the_loss_and_its_gradient_are_zero() -> None:
    z = random(6, 1).requires_grad_()
    loss = supcon.supervised(z, torch.zeros(6, dtype=torch.int64), 0.5, torch.zeros(6, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0
    assert not gradient.any()


def test_a_lone_image_has_no_loss() -> None:
    z = random(1, 2).requires_grad_()
    loss = supcon.supervised(z, torch.tensor([0]), 0.5)
    loss.backward()
    assert loss.item() == 0


def test_golden_simclr() -> None:
    """methods-more.md 11.3."""
    assert supcon.simclr(at(0, 90), at(20, 80), 0.5).item() == pytest.approx(0.4145031400, abs=1e-10)


def test_simclr_of_orthonormal_pairs() -> None:
    views = torch.eye(4, dtype=torch.float64)
    expected = -math.log(math.exp(2) / (math.exp(2) + 6))
    assert supcon.simclr(views, views, 0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("b", [1, 4])
def test_contrast_with_a_teacher_of_orthonormal_vectors(b: int) -> None:
    """methods.md 4.6: NCE between equal sets of 2B vectors, CaSSLe's distillation at equality."""
    z = torch.eye(2 * b, dtype=torch.float64)
    expected = -math.log(math.exp(5) / (math.exp(5) + 2 * b - 1))
    assert clip_loss(z, z, 1 / 0.2).item() == pytest.approx(expected)


UNSEEN = torch.zeros(2, dtype=torch.bool)


def test_golden_sogclr() -> None:
    """methods-more.md 11.3."""
    one, two, zero = at(0, 90), at(20, 80), torch.zeros(2, dtype=torch.float64)
    _, value, log_u = supcon.sogclr(one, two, zero, UNSEEN, 0.5, 1.0)
    assert value.item() == pytest.approx(-1.3823798790, abs=1e-10)
    assert log_u.exp().tolist() == pytest.approx([1.7788467002] * 2, abs=1e-10)
    _, _, log_u = supcon.sogclr(one, two, zero, ~UNSEEN, 0.5, 0.9)  # log u = 0 is u = 1
    assert log_u.exp().tolist() == pytest.approx([1.7009620302] * 2, abs=1e-10)


def objective(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """F with the batch as the whole data set, one anchor at a time."""
    total = torch.zeros((), dtype=a.dtype)
    for i in range(len(a)):
        rest = torch.cat([torch.cat([v[:i], v[i + 1 :]]) for v in (a, b)])
        sides = sum(tau * (rest @ v[i] / tau).exp().mean().log() for v in (a, b))
        total = total + sides - 2 * a[i] @ b[i]
    return total / len(a)


def test_sogclr_has_the_gradient_of_its_objective() -> None:
    a, b = random(5, 3).requires_grad_(), random(5, 4).requires_grad_()
    zero, unseen = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.bool)
    scalar, value, _ = supcon.sogclr(a, b, zero, unseen, 0.2, 0.3)
    expected = objective(a, b, 0.2)
    assert_close(value, expected.detach())
    for got, wanted in zip(*(torch.autograd.grad(x, (a, b)) for x in (scalar, expected)), strict=True):
        assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_sogclr_weights_are_against_the_moving_average() -> None:
    a, b, tau, gamma = random(3, 5), random(3, 6), 0.3, 0.6
    old = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
    seen = torch.tensor([True, True, False])
    a.requires_grad_()
    scalar, value, log_u = supcon.sogclr(a, b, old, seen, tau, gamma)
    by_hand, logs = torch.zeros((), dtype=a.dtype), torch.zeros((), dtype=a.dtype)
    for i in range(3):
        rest = torch.cat([torch.cat([v[:i], v[i + 1 :]]) for v in (a, b)])
        average = []
        for v in (a, b):
            fresh = (rest @ v[i] / tau).exp()
            u = ((1 - gamma) * old[i].exp() + gamma * fresh.mean() if seen[i] else fresh.mean()).detach()
            by_hand = by_hand + tau * fresh.mean() / u  # u held: d(tau g / u) is tau/u dg
            logs = logs + tau * u.log()
            average.append(u)
        by_hand = by_hand - 2 * a[i] @ b[i]
        assert log_u[i].exp().item() == pytest.approx(sum(map(float, average)) / 2)
    assert_close(torch.autograd.grad(scalar, a)[0], torch.autograd.grad(by_hand / 3, a)[0])
    assert_close(value, (logs / 3 - 2 * (a * b).sum(1).mean()).detach())


def test_sogclr_of_one_image_only_aligns() -> None:
    a, b = random(1, 7), random(1, 8)
    old, seen = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    scalar, value, log_u = supcon.sogclr(a, b, old, seen, 0.1, 0.9)
    assert scalar.item() == value.item() == pytest.approx(-2 * (a @ b.T).item())
    assert log_u is old


def test_relations_at_equality_are_the_row_entropy_without_gradient() -> None:
    z = random(6, 9)
    leaf = z.clone().requires_grad_()
    loss = supcon.relation_distillation(z, leaf, 0.2, 0.2)
    share = supcon.others(z @ z.T / 0.2).softmax(1)
    assert loss.item() == pytest.approx(-(share * share.log()).sum(1).mean().item())
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.abs().max() < 1e-14


def test_relations_are_the_definition() -> None:
    past, now, total = random(4, 10), random(4, 11), 0.0
    for i in range(4):
        rest = [j for j in range(4) if j != i]
        p, q = (
            (torch.stack([z[i] @ z[j] for j in rest]) / tau).softmax(0)
            for z, tau in ((past, 0.01), (now, 0.2))
        )
        total -= (p * q.log()).sum().item() / 4
    assert supcon.relation_distillation(past, now, 0.01, 0.2).item() == pytest.approx(total)


def test_relations_leave_the_teacher_alone() -> None:
    past, now = random(4, 12).requires_grad_(), random(4, 13).requires_grad_()
    supcon.relation_distillation(past, now, 0.01, 0.2).backward()
    assert past.grad is None
