"""Describe classes by means and covariances of their features, and make covariances of few images usable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Gaussian(NamedTuple):
    """The number of some rows, their mean and their unbiased covariance, which is 0 of one row."""

    number: int
    mean: Float[Tensor, " d"]
    sigma: Float[Tensor, "d d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> Gaussian:
        """Describe at least one row."""
        return cls(len(rows), rows.mean(0), covariance(rows))

    def with_rows_of(self, other: Gaussian) -> Gaussian:
        """Describe the rows of both together."""
        count = self.number + other.number
        step = other.mean - self.mean
        between = self.number * other.number / count * torch.outer(step, step)
        scatter = (self.number - 1) * self.sigma + (other.number - 1) * other.sigma + between
        return Gaussian(count, self.mean + other.number / count * step, scatter / (count - 1))


def covariance(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Return the unbiased covariance of at least two rows; 0 of one row."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / max(1, len(rows) - 1)


def spread(sigma: Float[Tensor, "d d"], diagonal: float = 1.0, others: float = 1.0) -> Float[Tensor, "d d"]:
    """S + a1 V1 I + a2 V2 (11' - I): V1 the mean variance, V2 the mean of the other entries that are not 0.

    FeCAM (https://arxiv.org/abs/2309.14062), equation 7; RAPF's code has it with a1 = a2 = 1.

    Args:
        diagonal, others: a1 and a2.
    """
    identity = torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    off = sigma * (1 - identity)
    mean = off.sum() / (off != 0).sum().clamp(min=1)
    return sigma + diagonal * sigma.diagonal().mean() * identity + others * mean * (1 - identity)


def correlation(sigma: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """S_ij / sqrt(S_ii S_jj); a row without variance has its 1 on the diagonal and 0 elsewhere."""
    variance = sigma.diagonal()
    alive = variance > 0
    scale = torch.where(alive, variance, 1.0).rsqrt() * alive
    found = scale[:, None] * sigma * scale
    found.diagonal().fill_(1.0)
    return found
