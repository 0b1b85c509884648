"""Global contrastive losses of image-caption pairs, with moving averages in the logarithm.

Notation: z_i and e_i are the unit-length features of image i and of its caption, s(i,j) = <z_i, e_j>, and

    d1(i,j) = s(i,j) - s(i,i)    image i against caption j
    d2(i,j) = s(j,i) - s(i,i)    caption i against image j

N_i are the negatives of i in the batch and l the surrogate (the identity for GCL). The inner means of the objective

    g1_i = mean_{j in N_i} exp( l(d1(i,j)) / tau ),    g2_i alike

run over the whole training set; u1_i and u2_i are their moving averages (equations 1-4 of arXiv 2605.03866, whose text
is not public: the form is that of SogCLR, arXiv 2202.12387, and of LibAUC's bimodal GCL). Everything is kept as a
logarithm, since exponents reach hundreds at small temperatures.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

Negatives = Literal["instance", "other_class", "multi_positive"]


def clip_loss(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], scale: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    """The symmetric cross-entropy of CLIP (Radford et al. 2021), as FLYP fine-tunes with (arXiv 2212.00638).

    Args:
        image, text: unit length; row i of one belongs to row i of the other, and every other row is a negative.
        scale: 1 / temperature.
    """
    logits = scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def negatives(labels: Int64[Tensor, " b"], kind: Negatives) -> Bool[Tensor, "b b"]:
    """Which j are negatives of i: every other pair (``instance``), else the pairs of other classes."""
    if kind == "instance":
        return ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return labels[:, None] != labels[None, :]


def differences(
    similarity: Float[Tensor, "b b"], positives: Bool[Tensor, "b b"] | None = None
) -> tuple[Float[Tensor, "b b"], Float[Tensor, "b b"]]:
    """d1 and d2, row = anchor.

    Args:
        similarity: s, rows images, columns captions.
        positives: pairs whose mean similarity stands for s(i,i), a form of our own for several pairs of one class:
            s(i,i) becomes mean_{p} s(i,p) for the image's side and mean_{p} s(p,i) for the caption's.
    """
    if positives is None:
        own = similarity.diagonal()[:, None]
        return similarity - own, similarity.T - own
    share = positives / positives.sum(1, keepdim=True)
    return (
        similarity - (share * similarity).sum(1, keepdim=True),
        similarity.T - (share * similarity.T).sum(1, keepdim=True),
    )


def squared_hinge(difference: Float[Tensor, "b b"], margin: float) -> Float[Tensor, "b b"]:
    """max(0, margin + d)^2: a negative that is below the positive by ``margin`` costs nothing."""
    return functional.relu(margin + difference).square()


def log_mean_exp(
    exponent: Float[Tensor, "b b"], among: Bool[Tensor, "b b"]
) -> Float[Tensor, " b"]:
    """log mean_{j in N_i} exp(x_ij) of each row; -inf for a row without negatives."""
    count = among.sum(1)
    return exponent.masked_fill(~among, -math.inf).logsumexp(1) - count.clamp(min=1).log()


def moving_average(
    old: Float[Tensor, "*n"], seen: Bool[Tensor, "*n"], fresh: Float[Tensor, "*n"], gamma: float
) -> Float[Tensor, "*n"]:
    """log( (1 - gamma) exp(old) + gamma exp(fresh) ); ``fresh`` itself on a first visit.

    Args:
        old, fresh: logarithms.
        seen: where ``old`` has a value. What is not finite there counts as unseen.
        gamma: in (0, 1]; 1 keeps the fresh value alone.
    """
    mixed = fresh
    if gamma < 1:
        mixed = torch.logaddexp(old + math.log1p(-gamma), fresh + math.log(gamma))
    return torch.where(seen & old.isfinite(), mixed, fresh)


def surrogate(
    losses: tuple[Float[Tensor, "b b"], Float[Tensor, "b b"]],
    log_u: Float[Tensor, "b 2"],
    among: Bool[Tensor, "b b"],
    tau: float | Float[Tensor, " b"],
    weights: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """The scalar whose gradient estimates that of the objective (equation 4).

    (1/B) sum_i omega_i sum_{j in N_i} [ w1_ij l(d1(i,j)) + w2_ij l(d2(i,j)) ] with constant weights
    w_ij = exp( l(d(i,j))/tau - log u_i ) / |N_i|. Its value is not the objective's.

    Args:
        losses: l(d1) and l(d2), with gradient.
        log_u: log u1 and log u2, already updated with this batch.
        among: N_i; an anchor without any contributes nothing.
        tau: one temperature, or one an anchor.
        weights: omega, 1 where not given.
    """
    temperature = tau[:, None] if isinstance(tau, Tensor) else tau
    count = among.sum(1, keepdim=True).clamp(min=1)
    total = torch.zeros((), dtype=log_u.dtype, device=log_u.device)
    for side, loss in enumerate(losses):
        exponent = (loss.detach() / temperature - log_u[:, side, None]).masked_fill(~among, -math.inf)
        anchors = (exponent.exp() / count * loss).sum(1)
        total = total + (anchors if weights is None else weights * anchors).mean()
    return total
