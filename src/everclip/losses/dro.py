"""Group distributionally robust optimisation: the weight of each group's loss.

For group losses L_1..L_K (equation 6 of arXiv 2605.03866; the closed form is that of the KL-regularised maximum, as in
LibAUC's pAUC_DRO):

    F = max_{p in simplex} sum_k p_k L_k - lambda KL(p, 1/K) = lambda log( (1/K) sum_k exp(L_k / lambda) )
    p_k = exp(L_k / lambda) / sum_k' exp(L_k' / lambda)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def kl_weights(losses: Float[Tensor, " k"], strength: float) -> Float[Tensor, " k"]:
    """p: the maximiser, summing to 1. ``strength`` is lambda > 0: small is close to the worst group alone."""
    return (losses / strength).softmax(0)


def kl_objective(losses: Float[Tensor, " k"], strength: float) -> Float[Tensor, ""]:
    """F, between the mean of the losses (lambda -> infinity) and their maximum (lambda -> 0)."""
    return strength * ((losses / strength).logsumexp(0) - math.log(len(losses)))


def group_means(
    losses: Float[Tensor, " b"], groups: Int64[Tensor, " b"]
) -> tuple[Int64[Tensor, " k"], Float[Tensor, " k"]]:
    """The groups in a batch, sorted, and the mean loss of each."""
    unique, position, count = groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(unique), dtype=losses.dtype, device=losses.device).index_add(0, position, losses)
    return unique, sums / count


def uniform_sampling_weights(
    p: Float[Tensor, " b"], counts: Int64[Tensor, " b"], total: int
) -> Float[Tensor, " b"]:
    """omega_i = n p_{y_i} / n_{y_i}: the mean of omega_i v_i over images drawn uniformly is sum_k p_k mean_k v.

    Args:
        p: weight of each image's group.
        counts: images of each image's group.
        total: n, images in all.
    """
    return total * p / counts
