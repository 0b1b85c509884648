"""Contrast images with prototypes of classes, with importance weights for exemplars (CCLIS).

l_kj = <c_k, z_j>/tau for prototypes c_1..c_c and projections z_1..z_b of a batch, both unit length. The sum over a
class that is left with a few exemplars is estimated from them: an exemplar j that was drawn with probability p_j stands
for 1/p_j images (Li et al. 2024, arXiv 2403.04599).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional


def importance(
    target: Int64[Tensor, " b"],
    groups: Int64[Tensor, " b"],
    exemplar: Bool[Tensor, " b"],
    drawn: Float[Tensor, " b"],
    known: int,
    classes: int,
) -> Float[Tensor, "c b"]:
    """Return v_kj = n_g p_j for an exemplar j of another class than k, where k is an old class; else 1.

    n_g counts the exemplars of j's group in the batch, so that sum_j exp(l_kj)/v_kj over them estimates the sum over
    all that they were drawn from.

    Args:
        target: prototype of each image's class.
        groups: what p_j sums to 1 over: the class, or the class in its domain.
        drawn: p_j; read for exemplars only.
        known: prototypes of old classes, which come first.
        classes: prototypes in all.
    """
    count = ((groups[:, None] == groups[None, :]) & exemplar[:, None]).sum(0)
    prototype = torch.arange(classes, device=target.device)[:, None]
    applies = (prototype < known) & exemplar & (prototype != target)
    return torch.where(applies, count * drawn, torch.ones_like(drawn))


def prototype_contrast(
    logits: Float[Tensor, "b c"], target: Int64[Tensor, " b"], weights: Float[Tensor, "c b"]
) -> Float[Tensor, ""]:
    """Return mean_i [ -l_{y_i,i} + log sum_j exp(l_{y_i,j}) / v_{y_i,j} ]: a prototype finds its images in the batch.

    Args:
        logits: l, one row per image.
        target: y, as prototypes.
        weights: v.
    """
    # The inner sum is the same for all images of a class, so it is taken once per prototype.
    own = functional.one_hot(target, logits.shape[1]).to(logits)
    # a probability may be too small for fp32: such an exemplar gets the largest weight that is not infinite
    tiny = torch.finfo(weights.dtype).tiny
    spread = (logits.T - weights.clamp(min=tiny).log()).logsumexp(1)
    return (own.sum(0) @ spread - (own * logits).sum()) / len(logits)


def mean_contrast(
    z: Float[Tensor, "b d"], means: Float[Tensor, "k d"], target: Int64[Tensor, " b"], tau: float
) -> Float[Tensor, ""]:
    """Return mean_i -log softmax_k( <z_i, p_k>/tau )_{y_i} over images with a target (-1: none); 0 if no image has
    one."""
    total = functional.cross_entropy(z @ means.T / tau, target, ignore_index=-1, reduction="sum")
    return total / (target >= 0).sum().clamp(min=1)


def draw_scores(logits: Float[Tensor, "n c"], target: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return s_j = mean_{k != y_j} exp(l_kj) / sum_j' exp(l_kj'): how much of the other classes' sums an image makes
    up.

    Drawing in proportion to s_j estimates these sums with the least variance. With one class all scores are 1.
    """
    classes = logits.shape[1]
    if classes == 1:
        return torch.ones_like(logits[:, 0])
    total = torch.zeros_like(logits[:, 0])
    for k in range(classes):  # one at a time: the shares of all would take as much memory again
        total += logits[:, k].softmax(0) * (target != k)
    return total / (classes - 1)


def shares(scores: Float[Tensor, " n"], groups: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return p_j: each score over the sum of its group's."""
    unique, where = groups.unique(return_inverse=True)
    sums = torch.zeros(len(unique), dtype=scores.dtype, device=scores.device).index_add(0, where, scores)
    return scores / sums[where]
