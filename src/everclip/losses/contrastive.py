"""Compute global contrastive losses of image-caption pairs, with moving averages in the logarithm.

Notation: z_i and e_i are the unit-length features of image i and of its caption, s(i,j) = <z_i, e_j>, and

    d1(i,j) = s(i,j) - s(i,i)    image i against caption j
    d2(i,j) = s(j,i) - s(i,i)    caption i against image j

N_i are the negatives of i in the batch and l the pair loss (the identity for GCL, a squared hinge for GDRO).
The inner means of the objective

    g1_i = mean_{j in N_i} exp( l(d1(i,j)) / tau ),    g2_i alike

run over the whole training set; u1_i and u2_i are their moving averages. Everything is kept as a logarithm,
since exponents reach hundreds at small temperatures.

Equations 1-5 are those of arXiv 2605.03866. Their text is not public and no code was released, so the forms here are a
reconstruction, after SogCLR (arXiv 2202.12387) and the bimodal loss of LibAUC; docs/methods.md says what is certain.

In matrices of pairs a row is an anchor. All functions but ``clip_loss``, ``sigmoid_loss``,
``negatives`` and ``differences`` also accept part of the rows with all the columns, which is how processes share one
batch: the mean of the gradients over equal parts is the gradient of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

Negatives = Literal["instance", "other_class", "multi_positive"]
PairLoss = Literal["squared_hinge", "identity"]
Sides = tuple[Float[Tensor, "a b"], Float[Tensor, "a b"]]
"""Images against captions, and captions against images."""
Tau = float | Float[Tensor, " a"]
"""One temperature, or one for each anchor."""


def clip_loss(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], scale: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    """Return the symmetric cross-entropy of CLIP (Radford et al. 2021), as FLYP fine-tunes with (arXiv 2212.00638).

    Args:
        image, text: unit length; row i of one belongs to row i of the other, and every other row is a
            negative, those of the same class too (FLYP's training loss).
        scale: 1 / temperature.
    """
    logits = scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return SigLIP's loss: each of the b^2 pairs of a batch is judged by itself (Zhai et al. 2023, arXiv 2303.15343,
    eq. 1).

        - (1/b) sum_ij log sigmoid( y_ij (scale s(i,j) + bias) ),   y_ij = 1 where i = j, else -1

    Args:
        image, text: unit length; row i of one belongs to row i of the other.
        scale: 1 / temperature. The paper, which trains from scratch, starts at 10, with a bias of -10.
    """
    sign = 2 * torch.eye(len(image), device=image.device, dtype=image.dtype) - 1
    return -functional.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


def negatives(labels: Int64[Tensor, " b"], kind: Negatives) -> Bool[Tensor, "b b"]:
    """Return N: which j are negatives of i; a row without any has no loss.

    Args:
        labels: class of each pair.
        kind: ``instance`` takes every other pair, as equations 1-3 sum over the entire data set;
            ``other_class`` (equation 5, "negative samples" of a class) and ``multi_positive`` take the pairs
            of other classes.
    """
    if kind == "instance":
        return ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return labels[:, None] != labels[None, :]


def differences(
    similarity: Float[Tensor, "b b"], positives: Bool[Tensor, "b b"] | None = None
) -> tuple[Float[Tensor, "b b"], Float[Tensor, "b b"]]:
    """Return d1 and d2, row = anchor, in [-2, 2].

    Args:
        similarity: s, rows images, columns captions.
        positives: P, each pair itself included: the pairs of the same class (for ``multi_positive``). Their mean
            similarity takes the place of s(i,i):

                d1(i,j) = s(i,j) - mean_{p in P_i} s(i,p),    d2(i,j) = s(j,i) - mean_{p in P_i} s(p,i)

            This form is ours, not the paper's. For the identity it equals the average over p of the losses with
            positive p, tau log mean_j exp( (s(i,j) - s(i,p)) / tau ); for the hinge, which is convex, it is at most
            that average.
    """
    if positives is None:
        own = similarity.diagonal()[:, None]
        return similarity - own, similarity.T - own
    share = positives.to(similarity) / positives.sum(1, keepdim=True)
    return (
        similarity - (share * similarity).sum(1, keepdim=True),
        similarity.T - (share * similarity.T).sum(1, keepdim=True),
    )


def squared_hinge(difference: Float[Tensor, "a b"], margin: float) -> Float[Tensor, "a b"]:
    """Return l(d) = max(0, margin + d)^2: a negative that is below the positive by ``margin`` costs nothing.

    The pairwise squared hinge of equation 5, as in LibAUC's partial AUC losses (Zhu et al. 2022, arXiv 2203.00176).
    """
    return functional.relu(margin + difference).square()


def pair_loss(difference: Float[Tensor, "a b"], kind: PairLoss, margin: float) -> Float[Tensor, "a b"]:
    """Return l(d): ``squared_hinge``, or the difference itself (``identity``, which has no margin)."""
    return squared_hinge(difference, margin) if kind == "squared_hinge" else difference


def pair_losses(sides: Sides, kind: PairLoss, margin: float) -> Sides:
    """Return l(d1) and l(d2)."""
    return pair_loss(sides[0], kind, margin), pair_loss(sides[1], kind, margin)


def log_mean_exp(exponent: Float[Tensor, "a b"], among: Bool[Tensor, "a b"]) -> Float[Tensor, " a"]:
    """Return log mean_{j in N_i} exp(x_ij) of each row; -inf for a row without negatives."""
    count = among.sum(1)
    return exponent.masked_fill(~among, -math.inf).logsumexp(1) - count.clamp(min=1).to(exponent).log()


def log_means(losses: Sides, among: Bool[Tensor, "a b"], tau: Tau) -> Float[Tensor, "a 2"]:
    """Return log g1 and log g2 of the batch (equations 2, 3), without gradient; -inf for anchors without negatives.

    Args:
        losses: l(d1) and l(d2).
        among: N.
        tau: > 0.
    """
    return torch.stack([log_mean_exp(loss.detach() / _column(tau), among) for loss in losses], 1)


def moving_average(
    old: Float[Tensor, "*n"],
    seen: Bool[Tensor, "*#n"],
    fresh: Float[Tensor, "*n"],
    gamma: float | Float[Tensor, "*#n"],
) -> Float[Tensor, "*n"]:
    """Return log( (1 - gamma) exp(old) + gamma exp(fresh) ); ``fresh`` itself on a first visit.

    The estimator of equation 4. The rule for the first visit holds per sample, as new images and exemplars that were
    seen before share batches.

    Args:
        old, fresh: logarithms.
        seen: where ``old`` has a value. Non-finite values count as unseen.
        gamma: in (0, 1]; 1 keeps the fresh value alone. With one per sample, a schedule can spare carried values.
    """
    rate = torch.as_tensor(gamma, dtype=fresh.dtype, device=fresh.device)
    mixed = torch.logaddexp(old + torch.log1p(-rate), fresh + rate.log())
    return torch.where(seen & old.isfinite(), mixed, fresh)


def objective(log_u: Float[Tensor, "a 2"], tau: Tau) -> Float[Tensor, " a"]:
    """Return tau log u1 + tau log u2: each anchor's part of the objective (equations 1 and 5), without gradient."""
    return tau * log_u.sum(1)


def surrogate(
    losses: Sides,
    log_u: Float[Tensor, "a 2"],
    among: Bool[Tensor, "a b"],
    tau: Tau,
    weights: Float[Tensor, " a"] | None = None,
    count: Int64[Tensor, "a 1"] | None = None,
) -> Float[Tensor, ""]:
    """Return the scalar whose gradient estimates that of the objective (equation 4).

    (1/B) sum_i omega_i sum_{j in N_i} [ w1_ij l(d1(i,j)) + w2_ij l(d2(i,j)) ] with constant weights
    w_ij = exp( l(d(i,j))/tau - log u_i ) / |N_i|: the gradient of tau log u with u held fixed in the
    denominator, where the two tau cancel. Its value is not that of ``objective``.

    Args:
        losses: l(d1) and l(d2), with gradient.
        log_u: log u1 and log u2, updated with this batch, so that a row's weights sum to 1 / gamma at most.
        among: N; an anchor without any contributes nothing, but counts in B.
        weights: omega, 1 where not given.
        count: |N_i|, needed where ``among`` has only part of the negatives.
    """
    count = (among.sum(1, keepdim=True) if count is None else count).clamp(min=1)
    total = torch.zeros((), dtype=log_u.dtype, device=log_u.device)
    for side, loss in enumerate(losses):
        exponent = (loss.detach() / _column(tau) - log_u[:, side, None]).masked_fill(~among, -math.inf)
        anchors = (exponent.exp() / count * loss).sum(1)
        total = total + (anchors if weights is None else weights * anchors).mean()
    return total


def temperature_gradient(
    losses: Sides, log_u: Float[Tensor, "a 2"], among: Bool[Tensor, "a b"], tau: Tau, rho: float
) -> Float[Tensor, " a"]:
    """Return the derivative by tau of each anchor's tau log u1 + tau log u2 + 2 rho tau, without gradient.

    log u1 - sum_j w1_ij l(d1(i,j)) / tau + rho, and the same for the caption's side: the robust temperature of RGCL
    (Qiu et al. 2023, arXiv 2305.11965); rho keeps tau from growing. One tau per pair for both sides is ours.
    """
    total = torch.full_like(log_u[:, 0], 2 * rho)
    count = among.sum(1, keepdim=True).clamp(min=1)
    for side, loss in enumerate(losses):
        scaled = loss.detach() / _column(tau)
        weights = (scaled - log_u[:, side, None]).masked_fill(~among, -math.inf).exp() / count
        total = total + log_u[:, side] - (weights * scaled).sum(1)
    return total


def _column(tau: Tau) -> float | Float[Tensor, "a 1"]:
    return tau[:, None] if isinstance(tau, Tensor) else tau


def _against(image: Tensor, text: Tensor, images: Tensor, texts: Tensor) -> Sides:
    """Return d1 and d2 of anchors against other images and texts."""
    positive = (image * text).sum(1, keepdim=True)
    return image @ texts.T - positive, text @ images.T - positive


@dataclass(frozen=True, eq=False)
class Part:
    """One process's part of a batch of B pairs, after FastCLIP (Wei et al. 2024, arXiv 2407.01445).

    Each process has all features, but only its own rows take a gradient. These enter the losses of their own anchors,
    and, as columns, those of every other anchor. So their gradient is complete once the other anchors' log u and
    weights, a few numbers per sample, are known, and no gradient of a feature has to be exchanged:

        own:     (1/B) sum_{i own}     omega_i sum_{j in N_i}      [ w1_ij l(d1(i,j)) + w2_ij l(d2(i,j)) ]
        others:  (1/B) sum_{i not own} omega_i sum_{j in N_i, own} [ the same, with s(i,i) constant ]

    FastCLIP uses its own columns for all anchors, its own included, with their rows as constants; the sum is the same.

    Args:
        image, text: ``[B, d]``, unit length; rows of other processes take no gradient.
        among: N of all anchors.
        own: this process's rows.
        kind, margin: the pair loss.
    """

    image: Float[Tensor, "b d"]
    text: Float[Tensor, "b d"]
    among: Bool[Tensor, "b b"]
    own: slice
    kind: PairLoss
    margin: float

    def rows(self) -> Sides:
        """Return d1 and d2 of this process's anchors with all columns."""
        return _against(self.image[self.own], self.text[self.own], self.image, self.text)

    def columns(self) -> Sides:
        """Return d1 and d2 of all anchors, as constants, with this process's columns."""
        return _against(self.image.detach(), self.text.detach(), self.image[self.own], self.text[self.own])

    def surrogate(
        self,
        losses: Sides,
        log_u: Float[Tensor, "b 2"],
        tau: float | Float[Tensor, " b"],
        weights: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the part of ``surrogate`` that depends on this process's rows.

        Args:
            losses: l of ``rows``.
            log_u, tau, weights: of the whole batch.
        """
        weights = torch.ones_like(log_u[:, 0]) if weights is None else weights
        others = weights.clone()
        others[self.own] = 0
        own_tau = tau[self.own] if isinstance(tau, Tensor) else tau
        among, share = self.among[self.own], len(losses[0]) / len(log_u)
        rows = surrogate(losses, log_u[self.own], among, own_tau, weights[self.own])
        against = pair_losses(self.columns(), self.kind, self.margin)
        count = self.among.sum(1, keepdim=True)
        columns = surrogate(against, log_u, self.among[:, self.own], tau, others, count)
        return share * rows + columns
