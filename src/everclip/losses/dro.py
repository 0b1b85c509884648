"""Optimise group distributional robustness: the weight of each group's loss.

For group losses L_1..L_K (equation 6 of arXiv 2605.03866):

    F = max_{p in simplex} sum_k p_k L_k - lambda KL(p, 1/K) = lambda log( (1/K) sum_k exp(L_k / lambda) )
    p_k = exp(L_k / lambda) / sum_k' exp(L_k' / lambda),    grad F = sum_k p_k grad L_k

The paper says that there are two equivalent forms; that they are these is our reading: the closed form of the
KL-regularised maximum as LibAUC documents it. A group is any integer id: a class, or a class in a domain. Without DRO
every image counts once, which is p_k = n_k / n; lambda -> infinity differs: p_k = 1 / K.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def kl_weights(losses: Float[Tensor, " k"], strength: float) -> Float[Tensor, " k"]:
    """Return p: the maximiser (equation 6), summing to 1.

    Args:
        losses: L_k of the groups that have images now, or their moving averages.
        strength: lambda > 0, on the scale of the losses: small is close to the worst group alone.
    """
    return (losses / strength).softmax(0)


def kl_objective(losses: Float[Tensor, " k"], strength: float) -> Float[Tensor, ""]:
    """Return F (equation 6), from the mean of the losses (lambda -> infinity) to their maximum (lambda -> 0)."""
    # expm1 and log1p: the logarithm of a mean near 1, times a large lambda, would lose all digits in fp32.
    top = losses.max().detach()
    return top + strength * ((losses - top) / strength).expm1().mean().log1p()


def sagawa_step(q: Float[Tensor, " k"], losses: Float[Tensor, " k"], eta: float) -> Float[Tensor, " k"]:
    """Return one step of the adversary's weights: q_k exp(eta L_k), renormalised.

    Sagawa et al. 2020 (arXiv 1911.08731, algorithm 1), an alternative to the closed form and not the paper's.
    The loss is sum_k q_k L_k with the returned q.

    Args:
        q: weights so far, > 0; renormalised, so a new group may enter as 1 / K.
        losses: L_k; 0 for a group without images in the batch.
        eta: step size, > 0; 0.01 in the original.
    """
    return (q.log() + eta * losses).softmax(0)


def group_means(
    losses: Float[Tensor, " b"], groups: Int64[Tensor, " b"]
) -> tuple[Int64[Tensor, " k"], Float[Tensor, " k"]]:
    """Return the groups in a batch, ascending, and the mean loss of each (equation 5, on a batch)."""
    unique, position, count = groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(unique), dtype=losses.dtype, device=losses.device).index_add(0, position, losses)
    return unique, sums / count


def uniform_sampling_weights(
    p: Float[Tensor, " b"], counts: Int64[Tensor, " b"], total: int, most: float = math.inf
) -> Float[Tensor, " b"]:
    """Return omega_i = n p_{y_i} / n_{y_i}: over images drawn uniformly, E omega_i v_i = sum_k p_k mean_k v.

    The paper does not say how batches are weighted; this makes the estimate of sum_k p_k grad L_k unbiased,
    for given p.

    Args:
        p: weight of each image's group.
        counts: number of images in each image's group.
        total: n, images in all.
        most: omega is clipped to this, which makes the estimate biased and less noisy.
    """
    return (total * p / counts).clamp(max=most)


def balanced_sampling_weights(
    p: Float[Tensor, " b"], classes: Int64[Tensor, " b"], total: int, most: float = math.inf
) -> Float[Tensor, " b"]:
    """Return omega_i = K p_{y_i}, for classes drawn uniformly and then equally many images of each.

    Where a class has fewer images in the batch than the others, each of them counts for more: omega_i = K p_{y_i} B /
    (K_B B_{y_i}) with K_B classes, B images and B_k images of class k in the batch. Unbiased for given p.

    Args:
        p: weight of each image's class; for groups within a class, p_g n_k / n_g.
        classes: class of each image of the batch.
        total: K, classes that can be drawn.
        most: as for uniform sampling.
    """
    unique, position, count = classes.unique(return_inverse=True, return_counts=True)
    return (total * p * len(classes) / (len(unique) * count[position])).clamp(max=most)
