"""Compute losses for classes of unequal size, as FOSTER does: effective numbers of images, balanced distillation."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor


def effective_weights(counts: Int64[Tensor, " c"], beta: float) -> Float[Tensor, " c"]:
    """Return w_k = (1 - beta) / (1 - beta^n_k), scaled to a mean of 1 (Cui et al. 2019,
    https://arxiv.org/abs/1901.05555).

    Rare classes have w > 1. A class without images counts as one of a single image, the rarest there is.

    Args:
        counts: images n_k of each class.
        beta: in [0, 1); 0 weighs all classes alike.
    """
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1).double())
    return (weights / weights.mean()).float()


def balanced_distillation(
    teacher: Float[Tensor, "b c"],
    student: Float[Tensor, "b c"],
    temperature: float,
    weights: Float[Tensor, " c"],
) -> Float[Tensor, ""]:
    """Return mean_i - sum_k p_ik log softmax(q_i / T)_k,  p_ik ~ w_k softmax(t_i / T)_k  (FOSTER, Wang et al. 2022,
    https://arxiv.org/abs/2204.04662, section 4.3): the teacher's answer with its lean to large classes taken out.

    With equal weights it is plain distillation. No gradient flows into the teacher.
    """
    soft = (teacher.detach() / temperature).softmax(1) * weights
    soft = soft / soft.sum(1, keepdim=True)
    return -(soft * (student / temperature).log_softmax(1)).sum(1).mean()
