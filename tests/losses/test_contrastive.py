"""The fast losses against double loops, closed forms and golden numbers; gradients in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from everclip.losses import contrastive
from everclip.losses.contrastive import Negatives, PairLoss
from tests.losses.pairs import everyone_else, features, golden, grad

KINDS: tuple[Negatives, ...] = ("instance", "other_class", "multi_positive")
Sides = tuple[Float[Tensor, "a b"], Float[Tensor, "a b"]]


def side_by_side(log_u: Tensor) -> tuple[Tensor, Tensor]:
    return log_u[:, 0].exp(), log_u[:, 1].exp()


# Golden numbers -----------------------------------------------------------------------------------


def test_golden_means_objective_and_surrogates() -> None:
    losses = contrastive.differences(golden())
    among = everyone_else(3)
    log_g = contrastive.log_means(losses, among, 0.1)
    g1, g2 = side_by_side(log_g)
    assert g1.tolist() == pytest.approx([0.10871014, 0.1686159, 0.12491373], abs=5e-9)
    assert g2.tolist() == pytest.approx([0.11305448, 0.13805102, 0.1590094], abs=5e-9)
    assert contrastive.objective(log_g, 0.1).mean().item() == pytest.approx(-0.4026047803, abs=5e-11)
    image, text = one_side_each(losses, log_g, among)
    assert image == pytest.approx(-0.2003273402, abs=5e-11)
    assert text == pytest.approx(-0.1952377867, abs=5e-11)


def test_golden_moving_average() -> None:
    losses = contrastive.differences(golden())
    among = everyone_else(3)
    fresh = contrastive.log_means(losses, among, 0.1)
    log_u = contrastive.moving_average(
        torch.zeros_like(fresh), torch.ones_like(fresh, dtype=torch.bool), fresh, 0.5
    )
    u1, u2 = side_by_side(log_u)
    assert u1.tolist() == pytest.approx([0.55435507, 0.58430795, 0.56245687], abs=5e-9)
    assert u2.tolist() == pytest.approx([0.55652724, 0.56902551, 0.5795047], abs=5e-9)
    image, text = one_side_each(losses, log_u, among)
    assert image == pytest.approx(-0.0464958978, abs=5e-11)
    assert text == pytest.approx(-0.0465807778, abs=5e-11)


def one_side_each(losses: Sides, log_u: Tensor, among: Tensor) -> tuple[float, float]:
    """The image's and the caption's part of the surrogate."""
    nothing = torch.zeros_like(losses[0])
    image = contrastive.surrogate((losses[0], nothing), log_u, among, 0.1)
    text = contrastive.surrogate((nothing, losses[1]), log_u, among, 0.1)
    both = contrastive.surrogate(losses, log_u, among, 0.1)
    assert both.item() == pytest.approx(image.item() + text.item(), abs=1e-14)
    return image.item(), text.item()


# Closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.01, 0.07, 1.0])
def test_gamma_one_is_infonce_without_the_positive_in_the_denominator(tau: float) -> None:
    image, text = features(0, 7)
    similarity = image @ text.T
    losses = contrastive.differences(similarity)
    among = everyone_else(7)
    ours = contrastive.surrogate(losses, contrastive.log_means(losses, among, tau), among, tau)
    decoupled = torch.zeros((), dtype=torch.float64)
    for s in (similarity, similarity.T):
        others = (s / tau).masked_fill(~among, -math.inf).logsumexp(1)
        decoupled = decoupled + (others - s.diagonal() / tau).mean()
    torch.testing.assert_close(
        grad(ours, image, text), tau * grad(decoupled, image, text), atol=5e-11, rtol=1e-9
    )


@pytest.mark.parametrize("tau", [0.01, 0.07, 1.0])
def test_gamma_one_with_the_pair_itself_is_the_clip_loss(tau: float) -> None:
    image, text = features(1, 7)
    losses = contrastive.differences(image @ text.T)
    everyone = torch.ones(7, 7, dtype=torch.bool)
    ours = contrastive.surrogate(losses, contrastive.log_means(losses, everyone, tau), everyone, tau)
    clip = contrastive.clip_loss(image, text, 1 / tau)
    torch.testing.assert_close(
        grad(ours, image, text), 2 * tau * grad(clip, image, text), atol=5e-11, rtol=1e-9
    )


def test_surrogate_has_the_gradient_of_the_objective_at_gamma_one() -> None:
    image, text = features(2, 6)
    losses = contrastive.differences(image @ text.T)
    among = everyone_else(6)
    log_g = torch.stack([contrastive.log_mean_exp(loss / 0.1, among) for loss in losses], 1)
    whole = contrastive.objective(log_g, 0.1).mean()
    ours = contrastive.surrogate(losses, log_g.detach(), among, 0.1)
    torch.testing.assert_close(grad(ours, image, text), grad(whole, image, text), atol=1e-12, rtol=1e-9)


def test_relation_to_the_bimodal_loss_of_libauc() -> None:
    """Theirs halves the sum of both sides and does not divide by |N|: (B - 1) / 2 times our gradient."""
    image, text = features(3, 6)
    tau, gamma, old_u = 0.1, 0.8, torch.linspace(0.1, 2, 12, dtype=torch.float64).view(6, 2)
    d1, d2 = contrastive.differences(image @ text.T)
    among = everyone_else(6)
    libauc = torch.zeros((), dtype=torch.float64)
    for side, d in enumerate((d1, d2)):
        exponential = (d / tau).exp().detach() * among
        u = (1 - gamma) * old_u[:, side] + gamma * exponential.sum(1) / 5
        libauc = libauc + (exponential / u[:, None] * d).sum(1).mean() / 2

    seen = torch.ones(6, 1, dtype=torch.bool)
    fresh = contrastive.log_means((d1, d2), among, tau)
    log_u = contrastive.moving_average(old_u.log(), seen, fresh, gamma)
    ours = contrastive.surrogate((d1, d2), log_u, among, tau)
    torch.testing.assert_close(2.5 * grad(ours, image, text), grad(libauc, image, text))


def test_clip_loss_against_loops() -> None:
    image, text = features(3, 5)
    z, e = image.tolist(), text.tolist()
    scale, total = 14.0, 0.0
    for i in range(5):
        rows = [scale * math.fsum(a * b for a, b in zip(z[i], e[j], strict=True)) for j in range(5)]
        columns = [scale * math.fsum(a * b for a, b in zip(z[j], e[i], strict=True)) for j in range(5)]
        for logits in (rows, columns):
            total += math.log(math.fsum(map(math.exp, logits))) - logits[i]
    assert contrastive.clip_loss(image, text, scale).item() == pytest.approx(total / 10, abs=1e-12)


# The whole step against a double loop -------------------------------------------------------------


def naive_step(
    s: list[list[float]],
    labels: list[int],
    kind: str,
    pair: tuple[Callable[[float], float], Callable[[float], float]],
    tau: list[float],
    old: list[list[float] | None],
    gamma: float,
    omega: list[float],
) -> tuple[list[list[float]], list[list[float]]]:
    """u after the step and the gradient estimate with respect to s, written out pair by pair, in plain u."""
    n, (loss, slope) = len(s), pair
    gradient = [[0.0] * n for _ in range(n)]
    updated = []
    for i in range(n):
        if kind == "instance":
            among = [j for j in range(n) if j != i]
        else:
            among = [j for j in range(n) if labels[j] != labels[i]]
        same = [j for j in range(n) if labels[j] == labels[i]] if kind == "multi_positive" else [i]
        row = []
        for side in (0, 1):
            at = (lambda j, i=i: (i, j)) if side == 0 else (lambda j, i=i: (j, i))
            own = sum(s[at(p)[0]][at(p)[1]] for p in same) / len(same)
            d = {j: s[at(j)[0]][at(j)[1]] - own for j in among}
            if not among:
                row.append(1.0)
                continue
            g = sum(math.exp(loss(d[j]) / tau[i]) for j in among) / len(among)
            past = old[i]
            u = g if past is None else (1 - gamma) * past[side] + gamma * g
            row.append(u)
            for j in among:
                weight = math.exp(loss(d[j]) / tau[i]) / (len(among) * u)
                part = omega[i] * weight * slope(d[j]) / n
                gradient[at(j)[0]][at(j)[1]] += part
                for p in same:
                    gradient[at(p)[0]][at(p)[1]] -= part / len(same)
        updated.append(row)
    return updated, gradient


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    b=st.integers(1, 7),
    classes=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["squared_hinge", "identity"]),
    gamma=st.sampled_from([0.2, 0.8, 1.0]),
    tau=st.floats(0.08, 2),
)
def test_step_against_double_loop(
    seed: int, b: int, classes: int, kind: Negatives, name: PairLoss, gamma: float, tau: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    s = (torch.rand(b, b, dtype=torch.float64, generator=random) - 0.5).requires_grad_()
    labels = torch.randint(classes, (b,), generator=random)
    omega = torch.rand(b, dtype=torch.float64, generator=random) * 3
    taus = tau * (1 + torch.rand(b, dtype=torch.float64, generator=random))
    old = torch.rand(b, 2, dtype=torch.float64, generator=random) * 2 + 0.1
    seen = torch.rand(b, generator=random) < 0.5

    among = contrastive.negatives(labels, kind)
    d1, d2 = contrastive.differences(s, ~among if kind == "multi_positive" else None)
    losses = (contrastive.pair_loss(d1, name, 0.3), contrastive.pair_loss(d2, name, 0.3))
    fresh = contrastive.log_means(losses, among, taus)
    log_u = contrastive.moving_average(old.log(), seen[:, None], fresh, gamma)
    log_u = log_u.masked_fill(~among.any(1, keepdim=True), 0)
    value = contrastive.surrogate(losses, log_u, among, taus, omega)

    pair = (lambda d: max(0.0, 0.3 + d) ** 2, lambda d: 2 * max(0.0, 0.3 + d))
    pair = pair if name == "squared_hinge" else (lambda d: d, lambda d: 1.0)
    past = [row if known else None for row, known in zip(old.tolist(), seen.tolist(), strict=True)]
    u, expected = naive_step(
        s.tolist(), labels.tolist(), kind, pair, taus.tolist(), past, gamma, omega.tolist()
    )
    torch.testing.assert_close(log_u.exp(), torch.tensor(u, dtype=torch.float64), atol=1e-12, rtol=1e-10)
    (found,) = torch.autograd.grad(value, s)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-9)


# Negatives and positives --------------------------------------------------------------------------


def test_negatives() -> None:
    labels = torch.tensor([4, 7, 4])
    instance = [[False, True, True], [True, False, True], [True, True, False]]
    classes = [[False, True, False], [True, False, True], [False, True, False]]
    assert contrastive.negatives(labels, "instance").tolist() == instance
    assert contrastive.negatives(labels, "other_class").tolist() == classes
    assert contrastive.negatives(labels, "multi_positive").tolist() == classes


def test_instance_with_one_caption_a_class_has_no_image_difference_within_a_class() -> None:
    image, text = features(4, 8, dtype=torch.float32)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 3])
    d1, d2 = contrastive.differences((image @ text.T)[:, labels])
    same = labels[:, None] == labels[None, :]
    assert (d1[same] == 0).all()
    assert (d2[same & everyone_else(8)] != 0).all()


def test_an_anchor_without_negatives_contributes_nothing() -> None:
    image, text = features(5, 4)
    losses = contrastive.differences(image @ text.T)
    labels = torch.zeros(4, dtype=torch.int64)
    among = contrastive.negatives(labels, "other_class")
    log_g = contrastive.log_means(losses, among, 0.1)
    assert (log_g == -math.inf).all()
    value = contrastive.surrogate(losses, torch.zeros_like(log_g), among, 0.1)
    assert value.item() == 0
    assert (grad(value, image, text) == 0).all()


def test_a_single_pair_has_no_loss() -> None:
    image, text = features(6, 1)
    losses = contrastive.differences(image @ text.T)
    value = contrastive.surrogate(losses, torch.zeros(1, 2, dtype=torch.float64), everyone_else(1), 0.1)
    assert value.item() == 0
    assert (grad(value, image, text) == 0).all()


def average_over_positives(s: Tensor, labels: Tensor, name: PairLoss, tau: float) -> Tensor:
    """Per anchor: the mean over its positives p of the loss with p in the place of its own pair."""
    among = contrastive.negatives(labels, "other_class")
    total = []
    for i in range(len(s)):
        parts = []
        for p in torch.nonzero(~among[i]).flatten().tolist():
            for row in (s[i], s[:, i]):
                loss = contrastive.pair_loss((row - row[p])[None], name, 0.3)
                parts.append(tau * contrastive.log_mean_exp(loss / tau, among[i][None])[0])
        total.append(2 * torch.stack(parts).mean())
    return torch.stack(total)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(0.02, 1))
def test_multi_positive_is_the_average_over_positives(seed: int, tau: float) -> None:
    """Exactly for the identity; a lower bound of it for the hinge."""
    random = torch.Generator().manual_seed(seed)
    s = torch.rand(6, 6, dtype=torch.float64, generator=random) - 0.5
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    among = contrastive.negatives(labels, "multi_positive")
    d1, d2 = contrastive.differences(s, ~among)
    values = {}
    for name in ("identity", "squared_hinge"):
        losses = (contrastive.pair_loss(d1, name, 0.3), contrastive.pair_loss(d2, name, 0.3))
        values[name] = contrastive.objective(contrastive.log_means(losses, among, tau), tau)
    torch.testing.assert_close(values["identity"], average_over_positives(s, labels, "identity", tau))
    assert (values["squared_hinge"] <= average_over_positives(s, labels, "squared_hinge", tau) + 1e-12).all()


def test_multi_positive_with_one_image_a_class_is_the_plain_loss() -> None:
    s = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    among = contrastive.negatives(torch.arange(5), "multi_positive")
    for ours, plain in zip(contrastive.differences(s, ~among), contrastive.differences(s), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-16, rtol=0)


def test_squared_hinge() -> None:
    d = torch.tensor([[-1.0, -0.3, -0.2, 0.0, 0.5]], dtype=torch.float64)
    assert contrastive.squared_hinge(d, 0.3)[0].tolist() == pytest.approx([0, 0, 0.01, 0.09, 0.64], abs=1e-15)


def test_temperature_gradient_is_that_of_the_objective() -> None:
    """At gamma = 1 it equals autograd of tau log g1 + tau log g2 + 2 rho tau, one tau a pair."""
    random = torch.Generator().manual_seed(3)
    s = torch.rand(5, 5, generator=random, dtype=torch.float64)
    tau = (0.1 + torch.rand(5, generator=random, dtype=torch.float64)).requires_grad_()
    among = contrastive.negatives(torch.tensor([0, 0, 1, 2, 2]), "other_class")
    losses = contrastive.differences(s)
    sides = [contrastive.log_mean_exp(loss / tau[:, None], among) for loss in losses]
    objective = (tau * (sides[0] + sides[1]) + 2 * 1.5 * tau).sum()
    (expected,) = torch.autograd.grad(objective, tau)
    found = contrastive.temperature_gradient(losses, torch.stack(sides, 1).detach(), among, tau.detach(), 1.5)
    torch.testing.assert_close(found, expected)
