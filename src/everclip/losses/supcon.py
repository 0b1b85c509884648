"""Compute contrastive losses of images alone: by class, by instance, against moving averages; and instance relations.

z_1..z_n are unit-length projections. With two views of B images, n = 2B and row B + i is the second view of row i.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from everclip.losses.contrastive import moving_average
from everclip.losses.distill import distillation


def others(matrix: Shaped[Tensor, "n n"]) -> Shaped[Tensor, "n n-1"]:
    """Return each row without its entry on the diagonal."""
    n = len(matrix)
    # Views only: in the flattened matrix a diagonal entry follows every n others.
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def supervised(
    z: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    tau: float,
    anchors: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Return (1/n) sum_{i in A} mean_{p != i, y_p = y_i} [ -<z_i, z_p>/tau + log sum_{a != i} exp( <z_i, z_a>/tau ) ].

    SupCon (Khosla et al. 2020, arXiv 2004.11362); with ``anchors`` the asymmetric form of Co2L (Cha et al. 2021,
    arXiv 2106.14413), where the mean is still over all n. With every image a class of its own, and two views, it is
    SimCLR's NT-Xent. A row without a positive has no loss.

    Args:
        labels: rows with equal labels are positives.
        anchors: A; all rows by default.
    """
    share = others(z @ z.T / tau).log_softmax(1)
    positive = others(labels[:, None] == labels[None, :])
    each = -(share * positive).sum(1) / positive.sum(1).clamp(min=1)
    return (each if anchors is None else each * anchors).mean()


def simclr(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], tau: float) -> Float[Tensor, ""]:
    """Return NT-Xent of two views, the mean over the 2B anchors (Chen et al. 2020, arXiv 2002.05709)."""
    instance = torch.arange(len(first), device=first.device).repeat(2)
    return supervised(torch.cat([first, second]), instance, tau)


def sogclr(
    first: Float[Tensor, "b d"],
    second: Float[Tensor, "b d"],
    old: Float[Tensor, " b"],
    seen: Bool[Tensor, " b"],
    tau: float,
    gamma: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, " b"]]:
    """Return the global contrastive loss of two views a, b of images (SogCLR, Yuan et al. 2022, arXiv 2202.12387).

        F = mean_i [ -2 <a_i, b_i> + tau log u1_i + tau log u2_i ]
        u1_i = (1 - gamma) u_i + gamma mean_n exp( <a_i, n>/tau ), u2_i with b_i;    u_i <- (u1_i + u2_i)/2

    n runs over both views of the other images; the positive is not among them. Unlike in the loss of image-caption
    pairs, u averages exp( s/tau ) rather than exp( (s - positive)/tau ).

    Args:
        old: log u before this batch, where ``seen``.
        gamma: fraction of the fresh value; 1 on a first visit.

    Returns:
        the scalar to call backward on, F, and the new log u (the old one where a batch has one image).
    """
    positive = (first * second).sum(1)
    count = 2 * (len(first) - 1)
    if count == 0:
        return -2 * positive.mean(), -2 * positive.detach().mean(), old
    gradient, value, logs = -2 * positive, -2 * positive.detach(), []
    for one, other in ((first, second), (second, first)):
        scores = torch.cat([others(one @ one.T), others(one @ other.T)], 1)
        scaled = scores.detach() / tau
        log_u = moving_average(old, seen, scaled.logsumexp(1) - math.log(count), gamma)
        weights = (scaled - log_u[:, None]).exp() / count
        gradient = gradient + (weights * scores).sum(1)
        value = value + tau * log_u
        logs.append(log_u)
    return gradient.mean(), value.mean(), torch.logaddexp(*logs) - math.log(2)


def relation_distillation(
    teacher: Float[Tensor, "n d"], student: Float[Tensor, "n d"], teacher_tau: float, student_tau: float
) -> Float[Tensor, ""]:
    """Return mean_i CE(q*_i, q_i), q_i = softmax_{j != i}( <z_i, z_j>/tau ): instance-wise relations (Co2L).

    Args:
        teacher, student: unit-length projections of the same images; no gradient flows into the teacher.
    """
    past = others(teacher @ teacher.T) / teacher_tau
    return distillation(past, others(student @ student.T) / student_tau, 1.0)
