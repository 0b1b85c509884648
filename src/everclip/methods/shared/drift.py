"""Transfer sums over images that are no longer kept from an image tower to its later, trained version.

Features of both towers are known for some images only: new ones and exemplars. With x a feature of the tower that stays
and d = z - x its move to the other, over these images

    B   = (X'WX + lam I)^-1 X'WD         lam by generalised cross-validation; lam = inf leaves M = I
    r   = d - B'x                        what the map leaves, r_k its mean over the images of class k
    M   = I + B
    mu_k -> M'mu_k + m_k / (m_k + 1) r_k,     S -> M'SM + R'WR / tr W

W weighs an exemplar by the number of images of its class that it stands for, so tr W is n less what is held out; m_k
counts the images of class k that both towers have read. The map always starts at the pretrained tower, whose sums are
exact, so errors of one task are not handed on to the next. Maps of old statistics: SDC (Yu et al. 2020,
https://arxiv.org/abs/2004.00440), SLDC (Zhang et al. 2023, https://arxiv.org/abs/2303.05118); these leave out R, the
covariance of what no map explains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from everclip.methods.shared.closed_form import best_lam, ridge


@dataclass(frozen=True, eq=False)
class Carrier:
    """What carries class sums and scatter of all images from one tower to the other.

    Args:
        map: M.
        left: R'WR / tr W.
        shifts: m_k / (m_k + 1) r_k.
    """

    map: Float64[Tensor, "m m"]
    left: Float64[Tensor, "m m"]
    shifts: Float64[Tensor, "c m"]

    def sums(self, sums: Float64[Tensor, "c m"], counts: Int64[Tensor, " c"]) -> Float64[Tensor, "c m"]:
        """Return Q of the other tower."""
        return sums @ self.map + counts[:, None] * self.shifts

    def gram(
        self, gram: Float64[Tensor, "m m"], sums: Float64[Tensor, "c m"], counts: Int64[Tensor, " c"]
    ) -> Float64[Tensor, "m m"]:
        """Return G of the other tower: the scatter within classes is mapped, the means are those of ``sums``."""
        known = counts > 0
        before, after = (part[known] for part in (sums @ self.map, self.sums(sums, counts)))
        weights = counts[known].double().rsqrt()[:, None]
        before, after = weights * before, weights * after
        return self.map.T @ gram @ self.map + counts.sum() * self.left + after.T @ after - before.T @ before


class Moves:
    """Sums over the images that both towers have read."""

    def __init__(self, classes: int, width: int, device: torch.device) -> None:
        blank = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.gram, self.cross, self.square = blank, blank.clone(), blank.clone()
        self.rows, self.moves = blank.new_zeros(classes, width), blank.new_zeros(classes, width)
        self.weights, self.counts = blank.new_zeros(classes), blank.new_zeros(classes)

    def add(
        self,
        rows: Float64[Tensor, "b m"],
        others: Float64[Tensor, "b m"],
        labels: Int64[Tensor, " b"],
        weights: Float64[Tensor, " b"],
    ) -> None:
        """Add images, given their features on the tower that stays and on the other."""
        moves, targets = others - rows, one_hot(labels, len(self.counts)).double()
        weighted = weights[:, None] * rows
        self.gram.addmm_(weighted.T, rows)
        self.cross.addmm_(weighted.T, moves)
        self.square.addmm_((weights[:, None] * moves).T, moves)
        self.rows.addmm_(targets.T, weighted)
        self.moves.addmm_(targets.T, weights[:, None] * moves)
        self.weights += targets.T @ weights
        self.counts += targets.sum(0)

    def carrier(self) -> Carrier:
        """Fit the map. Raises RunError where features are not finite."""
        count = self.counts.sum()
        per_image = (count / self.weights.sum()).item()
        gram, cross = per_image * self.gram, per_image * self.cross
        lam = best_lam(gram, cross, per_image * self.square.trace().item(), int(count))
        offset = ridge(gram, cross, lam)
        crossed = self.cross.T @ offset
        left = (self.square - crossed - crossed.T + offset.T @ self.gram @ offset) / self.weights.sum()
        means = (self.moves - self.rows @ offset) / self.weights.clamp(min=1e-9)[:, None]
        shares = self.counts / (self.counts + 1)
        identity = torch.eye(len(offset), dtype=offset.dtype, device=offset.device)
        return Carrier(identity + offset, left, shares[:, None] * means)
