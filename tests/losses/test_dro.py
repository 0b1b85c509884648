"""Group DRO against closed forms, loops, autograd in fp64 and the formulas of LibAUC's losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int64
from torch import Tensor

from everclip.losses import contrastive, dro
from everclip.losses.contrastive import Negatives, PairLoss
from everclip.methods.base.sample_table import SampleTable
from tests.losses.pairs import golden


def similarities(seed: int, b: int) -> Float[Tensor, "b b"]:
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(b, b, dtype=torch.float64, generator=random) * 0.6 - 0.3).requires_grad_()


def losses_of(
    s: Float[Tensor, "b b"], labels: Int64[Tensor, " b"], kind: Negatives, name: PairLoss, margin: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """l(d1), l(d2) and the negatives."""
    d1, d2 = contrastive.differences(s)
    losses = (contrastive.pair_loss(d1, name, margin), contrastive.pair_loss(d2, name, margin))
    return losses, contrastive.negatives(labels, kind)


def per_image(losses: tuple[Tensor, Tensor], among: Tensor, tau: float) -> Float[Tensor, " b"]:
    """l_i, with gradient."""
    return sum((tau * contrastive.log_mean_exp(loss / tau, among) for loss in losses), torch.zeros(()))


# Weights and objective ----------------------------------------------------------------------------


def test_toy() -> None:
    losses = torch.tensor([0, math.log(3)], dtype=torch.float64)
    p = dro.kl_weights(losses, 1.0)
    assert p.tolist() == pytest.approx([0.25, 0.75], abs=1e-15)
    assert dro.kl_objective(losses, 1.0).item() == pytest.approx(math.log(2), abs=1e-15)
    divergence = (p * (2 * p).log()).sum()
    assert ((p * losses).sum() - divergence).item() == pytest.approx(0.693147, abs=5e-7)


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(-2, 2), min_size=1, max_size=8), strength=st.sampled_from([0.01, 0.1, 1, 10])
)
def test_objective_is_the_maximum_over_the_simplex(losses: list[float], strength: float) -> None:
    """F = sum p L - lambda KL(p, 1/K) at p, no less than at other weights; from the mean to the maximum."""
    values = torch.tensor(losses, dtype=torch.float64)

    def regularised(p: Tensor) -> float:
        return ((p * values).sum() + strength * (torch.special.entr(p).sum() - math.log(len(p)))).item()

    p = dro.kl_weights(values, strength)
    objective = dro.kl_objective(values, strength).item()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert objective == pytest.approx(regularised(p), abs=1e-9)
    assert values.mean().item() - 1e-9 <= objective <= values.max().item() + 1e-9
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        other = torch.rand(len(p), dtype=torch.float64, generator=random) + 1e-3
        assert regularised(other / other.sum()) <= objective + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_lambda(dtype: torch.dtype) -> None:
    losses = torch.tensor([0.02, 0.05, 0.03], dtype=dtype)
    assert dro.kl_objective(losses, 1e4).item() == pytest.approx(losses.mean().item(), rel=1e-6)
    assert dro.kl_weights(losses, 1e4).tolist() == pytest.approx([1 / 3] * 3, rel=1e-5)
    assert abs(dro.kl_objective(losses, 1e-3).item() - 0.05) < 1.2e-3
    assert dro.kl_weights(losses, 1e-3)[1].item() == pytest.approx(1, abs=1e-6)


def test_gradient_of_the_objective_is_the_weights() -> None:
    losses = torch.tensor([0.4, -0.2, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(dro.kl_objective(losses, 0.1), losses)
    torch.testing.assert_close(found, dro.kl_weights(losses.detach(), 0.1))


def test_extreme_losses_stay_finite() -> None:
    losses = torch.tensor([-400.0, 0.0, 1800.0])
    assert dro.kl_weights(losses, 0.01).tolist() == [0, 0, 1]
    assert dro.kl_objective(losses, 0.01).item() == pytest.approx(1800 - 0.01 * math.log(3), rel=1e-7)
    assert dro.sagawa_step(torch.tensor([1.0, 1.0, 1.0]), losses, 1.0).isfinite().all()


@pytest.mark.parametrize(
    ("strength", "p", "objective"),
    [
        (0.01, [0.22401352, 0.77598648], 0.0176790168),
        (0.1, [0.46897918, 0.53102082], 0.0160549730),
        (1.0, [0.49689397, 0.50310603], 0.0158814386),
    ],
)
def test_golden(strength: float, p: list[float], objective: float) -> None:
    labels = torch.tensor([0, 0, 1])
    losses, among = losses_of(golden(), labels, "other_class", "squared_hinge", 0.3)
    value = contrastive.objective(contrastive.log_means(losses, among, 0.1), 0.1)
    assert value.tolist() == pytest.approx([0.0029, 0.0164, 0.02207429], abs=5e-9)
    groups, means = dro.group_means(value, labels)
    assert groups.tolist() == [0, 1]
    assert means.tolist() == pytest.approx([0.00965, 0.02207429], abs=5e-9)
    assert dro.kl_weights(means, strength).tolist() == pytest.approx(p, abs=5e-9)
    assert dro.kl_objective(means, strength).item() == pytest.approx(objective, abs=5e-11)


# The gradient estimate ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squared_hinge", "identity"])
@pytest.mark.parametrize("strength", [0.01, 0.1, 10.0])
def test_full_batch_has_the_gradient_of_the_objective(name: PairLoss, strength: float) -> None:
    """All gammas 1 and omega = n p / n_k: lambda log mean_k exp(L_k / lambda), differentiated directly."""
    labels, tau = torch.tensor([4, 9, 4, 4, -2, 9, 4]), 0.05
    s = similarities(0, 7)
    losses, among = losses_of(s, labels, "other_class", name, 0.3)
    groups, means = dro.group_means(per_image(losses, among, tau), labels)
    assert groups.tolist() == [-2, 4, 9]
    (expected,) = torch.autograd.grad(dro.kl_objective(means, strength), s, retain_graph=True)

    position, counts = torch.searchsorted(groups, labels), torch.tensor([1, 4, 2])
    p = dro.kl_weights(means.detach(), strength)
    omega = dro.uniform_sampling_weights(p[position], counts[position], 7)
    log_u = contrastive.log_means(losses, among, tau)
    (found,) = torch.autograd.grad(contrastive.surrogate(losses, log_u, among, tau, omega), s)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def test_reduces_to_the_global_contrastive_loss() -> None:
    """Identity for the hinge, distinct classes, lambda -> infinity: F_GCL with instance negatives."""
    s = similarities(1, 6)
    ours, among = losses_of(s, torch.arange(6), "other_class", "identity", 0.3)
    _, means = dro.group_means(per_image(ours, among, 0.1), torch.arange(6))
    gcl, everyone = losses_of(s, torch.zeros(6, dtype=torch.int64), "instance", "identity", 0.3)
    expected = per_image(gcl, everyone, 0.1).mean()
    assert dro.kl_objective(means, 1e9).item() == pytest.approx(expected.item(), rel=1e-9)


def test_dead_zone_of_the_hinge() -> None:
    """Every negative is at least m below: no loss and no gradient. Closer than that, there is some."""
    labels = torch.tensor([0, 0, 1, 2])
    for gap, some in ((0.3, False), (0.29, True)):
        s = torch.full((4, 4), 0.5 - gap, dtype=torch.float64).fill_diagonal_(0.5).requires_grad_()
        losses, among = losses_of(s, labels, "other_class", "squared_hinge", 0.3)
        log_u = contrastive.log_means(losses, among, 0.05)
        _, means = dro.group_means(contrastive.objective(log_u, 0.05), labels)
        (gradient,) = torch.autograd.grad(contrastive.surrogate(losses, log_u, among, 0.05), s)
        assert bool((means.abs() > 1e-12).any()) is some
        assert bool((gradient != 0).any()) is some


def test_a_class_outside_the_batch_keeps_its_loss() -> None:
    """And one whose loss rises gains weight, at the others' cost."""
    table = SampleTable(1)
    table.set([3, 5, 8], torch.tensor([[0.1], [0.2], [0.3]]))
    active = torch.tensor([3, 5, 8])
    before = dro.kl_weights(table.get(active)[0][:, 0], 0.1)

    groups, fresh = dro.group_means(torch.tensor([0.5, 0.7, 0.2]), torch.tensor([3, 3, 5]))
    old, seen = table.get(groups)
    rate = torch.where(seen, 0.5, 1.0)
    table.set(groups, (old[:, 0] + rate * (fresh - old[:, 0]))[:, None])

    losses, seen = table.get(active)
    after = dro.kl_weights(losses[:, 0], 0.1)
    assert seen.all()
    assert losses[:, 0].tolist() == pytest.approx([0.35, 0.2, 0.3], rel=1e-6)
    assert after[0] > before[0]
    assert (after[1:] < before[1:]).all()
    assert after.sum().item() == pytest.approx(1, abs=1e-6)


# Sampling -----------------------------------------------------------------------------------------

DRAWN = torch.tensor([0, 1, 1, 1, 2, 2, 1, 0, 1])
"""Groups of nine images."""
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def vectors() -> Float[Tensor, "9 4"]:
    return torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def weighted_mean_of_groups(v: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """sum_k p_k mean_{i in k} v_i."""
    return torch.stack([P[k] * v[k == DRAWN].mean(0) for k in range(3)]).sum(0)


def test_uniform_sampling_is_unbiased() -> None:
    """The mean over all images of n p_{y_i} / n_{y_i} v_i, which is the expectation of a draw."""
    v, counts = vectors(), DRAWN.bincount()
    omega = dro.uniform_sampling_weights(P[DRAWN], counts[DRAWN], 9)
    torch.testing.assert_close((omega[:, None] * v).mean(0), weighted_mean_of_groups(v))


def test_balanced_sampling_is_unbiased() -> None:
    """Batches of two of the three classes, all images of each: the mean over the three batches is exact."""
    v, means = vectors(), []
    for left_out in range(3):
        rows = left_out != DRAWN
        omega = dro.balanced_sampling_weights(P[DRAWN][rows], DRAWN[rows], 3)
        means.append((omega[:, None] * v[rows]).mean(0))
    torch.testing.assert_close(torch.stack(means).mean(0), weighted_mean_of_groups(v))


def test_balanced_sampling_of_equally_many_images_is_k_times_p() -> None:
    p, labels = torch.tensor([0.7, 0.7, 0.2, 0.2]), torch.tensor([4, 4, 9, 9])
    torch.testing.assert_close(dro.balanced_sampling_weights(p, labels, 5), 5 * p)


def test_no_dro_is_the_share_of_images() -> None:
    """p_k = n_k / n gives every image the weight 1."""
    counts = DRAWN.bincount()
    omega = dro.uniform_sampling_weights((counts / 9).double()[DRAWN], counts[DRAWN], 9)
    torch.testing.assert_close(omega, torch.ones(9, dtype=torch.float64), atol=1e-6, rtol=0)


def test_weights_are_clipped() -> None:
    p, counts = torch.tensor([0.9, 0.1]), torch.tensor([1, 99])
    assert dro.uniform_sampling_weights(p, counts, 100).tolist() == pytest.approx([90, 10 / 99])
    assert dro.uniform_sampling_weights(p, counts, 100, 10).tolist() == pytest.approx([10, 10 / 99])
    assert dro.balanced_sampling_weights(p, torch.tensor([0, 1]), 2, 1.5).tolist() == pytest.approx(
        [1.5, 0.2]
    )


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(-3, 3)), min_size=1, max_size=12))
def test_group_means_against_a_loop(pairs: list[tuple[int, float]]) -> None:
    sums: dict[int, list[float]] = {}
    for group, loss in pairs:
        sums.setdefault(group, []).append(loss)
    losses = torch.tensor([loss for _, loss in pairs], dtype=torch.float64)
    groups, means = dro.group_means(losses, torch.tensor([group for group, _ in pairs]))
    assert groups.tolist() == sorted(sums)
    expected = [math.fsum(sums[group]) / len(sums[group]) for group in sorted(sums)]
    assert means.tolist() == pytest.approx(expected, abs=1e-12)


def test_sagawa_step() -> None:
    q, losses = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 2.0]], dtype=torch.float64)
    q = dro.sagawa_step(q, losses, 0.1)
    raw = [0.5 * math.exp(0.1), 0.25, 0.25 * math.exp(0.2)]
    assert q.tolist() == pytest.approx([value / sum(raw) for value in raw], abs=1e-12)


def test_sagawa_steps_on_fixed_losses_end_at_the_worst_group() -> None:
    q = torch.full((3,), 1 / 3)
    for _ in range(2000):
        q = dro.sagawa_step(q, torch.tensor([0.1, 0.3, 0.2]), 0.1)
    assert q.tolist() == pytest.approx([0, 1, 0], abs=1e-6)


# LibAUC's losses, by their formulas ---------------------------------------------------------------


def test_one_side_is_the_one_way_partial_auc_loss() -> None:
    """pAUC_DRO (SOPA-s): mean_ij sg( exp(l_ij / Lambda) / u_i ) l_ij, over positives i and negatives j."""
    random = torch.Generator().manual_seed(0)
    positive = torch.randn(4, dtype=torch.float64, generator=random).requires_grad_()
    negative = torch.randn(6, dtype=torch.float64, generator=random).requires_grad_()
    old_u, gamma, temperature = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64), 0.3, 0.5

    hinge = (1.0 - (positive[:, None] - negative[None, :])).clamp(min=0) ** 2
    exponential = (hinge / temperature).exp().detach()
    u = (1 - gamma) * old_u + gamma * exponential.mean(1)
    libauc = (exponential / u[:, None] * hinge).mean()

    ours = contrastive.squared_hinge(negative[None, :] - positive[:, None], 1.0)
    nothing, among = torch.zeros_like(ours), torch.ones(4, 6, dtype=torch.bool)
    fresh = contrastive.log_means((ours, nothing), among, temperature)
    old = torch.stack([old_u.log(), torch.zeros(4, dtype=torch.float64)], 1)
    log_u = contrastive.moving_average(old, torch.ones(4, 1, dtype=torch.bool), fresh, gamma)
    value = contrastive.surrogate((ours, nothing), log_u, among, temperature)
    assert value.item() == pytest.approx(libauc.item(), abs=1e-12)
    for found, expected in zip(
        torch.autograd.grad(value, (positive, negative)),
        torch.autograd.grad(libauc, (positive, negative)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_one_image_a_class_is_the_two_way_partial_auc_loss() -> None:
    """tpAUC_KL (SOTA-s), image side only.

    F = lambda log mean_i ( mean_j exp(l_ij / tau) )^(tau / lambda); its gradient is that of mean_ij sg(p_ij)
    l_ij, where p_ij = u_i^(tau / lambda - 1) exp(l_ij / tau) / w and w = mean_i u_i^(tau / lambda).
    """
    s, tau, strength = similarities(2, 6), 0.05, 0.02
    losses, among = losses_of(s, torch.arange(6), "other_class", "squared_hinge", 0.3)
    others = losses[0].masked_select(among).view(6, 5)
    h = (others / tau).exp().mean(1)
    objective = strength * (h ** (tau / strength)).mean().log()

    one_side = (losses[0], torch.zeros_like(losses[0]))
    log_u = contrastive.log_means(one_side, among, tau)
    value = contrastive.objective(log_u, tau)
    assert dro.kl_objective(value, strength).item() == pytest.approx(objective.item(), rel=1e-12)

    p = dro.kl_weights(value, strength)
    omega = dro.uniform_sampling_weights(p, torch.ones(6, dtype=torch.int64), 6)
    surrogate = contrastive.surrogate(one_side, log_u, among, tau, omega)
    power = tau / strength
    libauc_weights = (h ** (power - 1) / (h**power).mean())[:, None] * (others / tau).exp()
    libauc = (libauc_weights.detach() * others).mean()
    assert surrogate.item() == pytest.approx(libauc.item(), rel=1e-12)
    (found,) = torch.autograd.grad(surrogate, s, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(libauc, s, retain_graph=True)[0])
    torch.testing.assert_close(found, torch.autograd.grad(objective, s)[0])
