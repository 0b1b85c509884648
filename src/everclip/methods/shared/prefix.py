"""Put learned rows before the keys and values of a vision transformer's attention (CODA-Prompt)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from everclip.methods.shared.attention import attending

ROWS = 8
"""Rows of a prompt: half keys, half values."""


def prefixed(visual: nn.Module, prefixes: Sequence[Float[Tensor, "b r w"]]) -> AbstractContextManager[None]:
    """While open, run the first attentions with prefixes: the first half of the rows are keys."""
    return attending(visual, ({"prefix": rows.tensor_split(2, 1)} for rows in prefixes))


def split(rows: Float[Tensor, "m _"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return A ``[m, w]``, K ``[m, w]`` and P ``[m, 8 w]``."""
    width = rows.shape[1] // (2 + ROWS)
    return rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width :]


def weights(
    q: Float[Tensor, "b w"], a: Float[Tensor, "m w"], k: Float[Tensor, "m w"]
) -> Float[Tensor, "b m"]:
    """Return cos( q * A_m, K_m )."""
    return cosine_similarity(q[:, None] * a, k.expand(len(q), -1, -1), dim=2)


def prompt(q: Float[Tensor, "b w"], rows: Float[Tensor, "m _"]) -> Float[Tensor, "b 8 w"]:
    """Return sum_m alpha_m P_m."""
    a, k, p = split(rows)
    return (weights(q, a, k) @ p).unflatten(1, (ROWS, -1))


def skew(rows: Float[Tensor, "m _"]) -> Float[Tensor, ""]:
    """Return the sum over A, K and P of the mean square of B B' - I."""
    return torch.stack([(b @ b.T - torch.eye(len(b)).to(b)).square().mean() for b in split(rows)]).sum()


def orthogonal(old: Sequence[Tensor], count: int, width: int) -> Float[Tensor, "m _"]:
    """Return new rows of A, K and P, unit-length and, while there is room, orthogonal to old ones and to each other."""
    parts = []
    for place, size in enumerate((width, width, ROWS * width)):
        fresh = torch.randn(count, size)
        every = torch.cat([*(split(rows)[place].cpu() for rows in old), fresh])
        if len(every) <= size:
            fresh = torch.linalg.qr(every.T).Q.T[-count:]
        parts.append(normalize(fresh, dim=1))
    return torch.cat(parts, 1)
