"""Compute distillation losses: a frozen teacher's outputs as soft targets, corrected where classes differ in size."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor


def distillation(
    teacher: Float[Tensor, "b c"],
    student: Float[Tensor, "b c"],
    temperature: float,
    weights: Float[Tensor, " c"] | None = None,
) -> Float[Tensor, ""]:
    """Return mean_i - sum_k p_ik log softmax(q_i / T)_k,  p_ik ~ w_k softmax(t_i / T)_k (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531).

    The cross-entropy of softened distributions, whose smallest value is the entropy of p. It lacks the factor T^2 that
    keeps its gradient on the scale of the logits: multiply by it where that is wanted.

    Args:
        teacher, student: logits of the same classes; no gradient flows into the teacher.
        temperature: T > 0.
        weights: w, to remove the teacher's bias towards large classes (FOSTER, Wang et al. 2022,
            https://arxiv.org/abs/2204.04662, section 4.3); None: 1 for each class.
    """
    soft = (teacher.detach() / temperature).softmax(1)
    if weights is not None:
        soft = soft * weights
        soft = soft / soft.sum(1, keepdim=True)
    return -(soft * (student / temperature).log_softmax(1)).sum(1).mean()


def known_outputs(
    now: Float[Tensor, "n c"], stored: Float[Tensor, "n k"], scale: float = 1.0
) -> Float[Tensor, " n"]:
    """Return mean_k (scale * now_ik - scale * stored_ik)^2 of each image (Buzzega et al. 2020,
    https://arxiv.org/abs/2004.07211), over the first k columns: those that existed when the outputs were stored.
    """
    return ((scale * (now[:, : stored.shape[1]] - stored)) ** 2).mean(1)


def effective_weights(counts: Int64[Tensor, " c"], beta: float) -> Float[Tensor, " c"]:
    """Return w_k = (1 - beta) / (1 - beta^n_k), scaled to a mean of 1 (Cui et al. 2019,
    https://arxiv.org/abs/1901.05555).

    Rare classes have w > 1. A class without images counts as if it had one, the rarest case.

    Args:
        counts: images n_k of each class.
        beta: in [0, 1); 0 weighs all classes alike.
    """
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1).double())
    return (weights / weights.mean()).float()
