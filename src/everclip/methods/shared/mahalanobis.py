"""Measure how far an image is from all learned classes, from sums over images alone.

Classes are Gaussians with means mu_k and one covariance S, the pooled one within classes:

    distance        min_k (x - mu_k)' P (x - mu_k),     P = (S + s tr(S) / d I)^-1

(Mahalanobis distance: Lee et al. 2018, https://arxiv.org/abs/1807.03888, equation 2). The relative distance subtracts
that of a single Gaussian over all images, whose mean and covariance are mu_0 and T, so that what is far from everything
counts less (Ren et al. 2021, https://arxiv.org/abs/2106.09022, equation 2):

    relative        distance - (x - mu_0)' Q (x - mu_0),    Q = (T + s tr(T) / d I)^-1

Shrinkage is ours: with fewer images than features S has no inverse. s is that of the closed form (discriminant.py).

An image that is in the sums looks too near. ``left_out`` scores it as if it had never been added, exactly except for n
and the shrinkage, which stay: with a = x - mu_k and b = x - mu_0, k its class of n_k images,

    mu_k <- mu_k - a / (n_k - 1)        S <- S - n_k / (n_k - 1) a a' / n
    mu_0 <- mu_0 - b / (n - 1)          T <- T - b b' / (n - 1)

and the inverses change by one direction each (Sherman and Morrison 1950).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from everclip.methods.shared.closed_form import regular
from everclip.methods.shared.discriminant import strength, within_covariance
from everclip.methods.shared.statistics import Cells, Statistics

WIDEST = 4096
"""Largest number of features whose covariance is inverted, which takes one core seconds."""


def usable(method: Statistics, labels: Sequence[int]) -> bool:
    """Return whether a method's sums know all these classes, and its covariances are not too large to invert."""
    return method.exact and len(method.gram) <= WIDEST and bool((method.counts[list(labels)] > 0).all())


class _Parts(NamedTuple):
    """Groups of images with their means, as offsets from that of all images; P and Q."""

    cells: Cells
    mean: Float64[Tensor, " m"]
    offsets: Float64[Tensor, "k m"]
    near: Float64[Tensor, "m m"]
    far: Float64[Tensor, "m m"]


@torch.no_grad()
def _parts(method: Statistics) -> _Parts:
    cells, gram = method.cells(), method.gram
    share, n = method.shrinkage(cells), cells.counts.sum()
    if share is None:
        share = strength(gram, cells.sums, cells.counts)
    mean = cells.sums.sum(0) / n
    within = within_covariance(gram, cells.sums, cells.counts)
    total = gram / n - torch.outer(mean, mean)
    offsets = cells.sums / cells.counts[:, None] - mean
    return _Parts(cells, mean, offsets, _inverse(within, share), _inverse(total, share))


@torch.no_grad()
def distances(method: Statistics, labels: Sequence[int]) -> tuple[Quadratic, Quadratic]:
    """Return the distance of features to the nearest of some classes, and the relative one.

    All classes count in S and T. Where a class was learned in several domains it has a mean in each.
    """
    assert usable(method, labels)
    cells, mean, offsets, near, far = _parts(method)
    offsets = offsets[torch.isin(cells.owner, torch.tensor(labels, device=cells.owner.device))]
    weight = offsets @ near
    head = (-2 * weight.T, (weight * offsets).sum(1))
    return Quadratic(mean, near, *head), Quadratic(mean, near - far, *head)


@torch.no_grad()
def left_out(
    method: Statistics, rows: Float64[Tensor, "b m"], labels: Int64[Tensor, " b"]
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Return both distances of images that are in the sums, each as if that image were not in them.

    Args:
        rows, labels: the images; each of their classes needs at least two images, and one domain only.
    """
    cells, mean, offsets, near, far = _parts(method)
    place = torch.searchsorted(cells.owner, labels.to(rows.device))
    count, n = cells.counts[place].double(), cells.counts.sum().double()
    assert bool((cells.owner[place] == labels.to(rows.device)).all() and (count > 1).all())
    whole = rows - mean
    own = whole - offsets[place]
    turned = own @ near
    share = count / (count - 1) / n
    grown = share / (1 - share * (turned * own).sum(1))
    # z' P z and a' P z of z = x - mu_j for each class j
    weight = offsets @ near
    squares = ((whole @ near) * whole).sum(1, True) - 2 * whole @ weight.T + (weight * offsets).sum(1)
    across = (turned * whole).sum(1, True) - turned @ offsets.T
    moved = squares + grown[:, None] * across.square()
    at = place[:, None]
    moved = moved.scatter(1, at, moved.gather(1, at) * (count / (count - 1)).square()[:, None])
    away = ((whole @ far) * whole).sum(1)
    distance = moved.amin(1)
    return distance, distance - (n / (n - 1)) ** 2 * away / (1 - away / (n - 1))


def _inverse(covariance: Float64[Tensor, "m m"], share: float) -> Float64[Tensor, "m m"]:
    lam = share * (covariance.diagonal().mean().item() or 1.0)
    return torch.cholesky_inverse(regular(covariance, lam)[1])


class Quadratic(nn.Module):
    """``z' M z + min_k (z' w_k + b_k)`` with z = x - mean, in fp64."""

    def __init__(
        self,
        mean: Float64[Tensor, " m"],
        square: Float64[Tensor, "m m"],
        weight: Float64[Tensor, "m k"],
        bias: Float64[Tensor, " k"],
    ) -> None:
        super().__init__()
        self.mean, self.square, self.weight, self.bias = mean, square, weight, bias

    def forward(self, rows: Float64[Tensor, "b m"]) -> Float64[Tensor, " b"]:
        offsets = rows - self.mean
        nearest = torch.addmm(self.bias, offsets, self.weight).amin(1)
        return ((offsets @ self.square) * offsets).sum(1) + nearest
