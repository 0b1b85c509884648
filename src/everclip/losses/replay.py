"""Replay of stored outputs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def known_outputs(
    now: Float[Tensor, "n c"], stored: Float[Tensor, "n k"], scale: float = 1.0
) -> Float[Tensor, " n"]:
    """mean_k (scale * now_ik - scale * stored_ik)^2 of each image (Buzzega et al. 2020, https://arxiv.org/abs/2004.07211),
    over the first k columns: those that were there when the outputs were stored.
    """
    return ((scale * (now[:, : stored.shape[1]] - stored)) ** 2).mean(1)
