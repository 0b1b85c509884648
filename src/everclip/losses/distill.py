"""Compute distillation losses: a frozen teacher's outputs as soft targets."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def distillation(
    teacher: Float[Tensor, "b c"], student: Float[Tensor, "b c"], temperature: float
) -> Float[Tensor, ""]:
    """Return mean_i - sum_k softmax(t_i / T)_k log softmax(q_i / T)_k (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531).

    The cross-entropy of softened distributions, whose smallest value is the teacher's entropy. Without the factor T^2
    that keeps its gradient on the scale of the logits: who wants it multiplies.

    Args:
        teacher, student: logits of the same classes; no gradient flows into the teacher.
        temperature: T > 0.
    """
    soft = (teacher.detach() / temperature).softmax(1)
    return -(soft * (student / temperature).log_softmax(1)).sum(1).mean()


def known_outputs(
    now: Float[Tensor, "n c"], stored: Float[Tensor, "n k"], scale: float = 1.0
) -> Float[Tensor, " n"]:
    """Return mean_k (scale * now_ik - scale * stored_ik)^2 of each image (Buzzega et al. 2020,
    https://arxiv.org/abs/2004.07211), over the first k columns: those that were there when the outputs were stored.
    """
    return ((scale * (now[:, : stored.shape[1]] - stored)) ** 2).mean(1)
