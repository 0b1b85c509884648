"""Compute the contrastive losses of one process's part of a batch, after FastCLIP (Wei et al. 2024, arXiv 2407.01445).

All features are there, of which this process's rows alone take a gradient. These stand in the losses of their own
anchors, and among the columns of every other anchor's. So the gradient is whole once the other anchors' log u and
weights are known, one number per sample, and no gradient of a feature has to be exchanged:

    own:     (1/B) sum_{i own}     omega_i sum_{j in N_i}      [ w1_ij l(d1(i,j)) + w2_ij l(d2(i,j)) ]
    others:  (1/B) sum_{i not own} omega_i sum_{j in N_i, own} [ the same, with s(i,i) constant ]

FastCLIP takes its own columns of all anchors, its own ones too, and their rows as constants; the sum is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from everclip.losses import contrastive
from everclip.losses.contrastive import PairLoss, Sides


@dataclass(frozen=True, eq=False)
class Part:
    """One process's part of a batch of B pairs.

    Args:
        image, text: ``[B, d]``, unit length; rows of other processes take no gradient.
        among: N of all anchors.
        own: this process's rows.
        kind, margin: the pair loss.
    """

    image: Float[Tensor, "b d"]
    text: Float[Tensor, "b d"]
    among: Bool[Tensor, "b b"]
    own: slice
    kind: PairLoss
    margin: float

    def rows(self) -> Sides:
        """Return d1 and d2 of this process's anchors with all columns."""
        image, text = self.image[self.own], self.text[self.own]
        positive = (image * text).sum(1, keepdim=True)
        return image @ self.text.T - positive, text @ self.image.T - positive

    def columns(self) -> tuple[Float[Tensor, "b a"], Float[Tensor, "b a"]]:
        """Return d1 and d2 of all anchors, as constants, with this process's columns."""
        image, text = self.image.detach(), self.text.detach()
        positive = (image * text).sum(1, keepdim=True)
        return image @ self.text[self.own].T - positive, text @ self.image[self.own].T - positive

    def surrogate(
        self,
        losses: Sides,
        log_u: Float[Tensor, "b 2"],
        tau: float | Float[Tensor, " b"],
        weights: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the part of ``contrastive.surrogate`` that depends on this process's rows.

        Args:
            losses: l of ``rows``.
            log_u, tau, weights: of the whole batch.
        """
        weights = torch.ones_like(log_u[:, 0]) if weights is None else weights
        others = weights.clone()
        others[self.own] = 0
        own_tau = tau[self.own] if isinstance(tau, Tensor) else tau
        among, share = self.among[self.own], len(losses[0]) / len(log_u)
        rows = contrastive.surrogate(losses, log_u[self.own], among, own_tau, weights[self.own])
        first, second = self.columns()
        against = (
            contrastive.pair_loss(first, self.kind, self.margin),
            contrastive.pair_loss(second, self.kind, self.margin),
        )
        count = self.among.sum(1, keepdim=True)
        columns = contrastive.surrogate(against, log_u, self.among[:, self.own], tau, others, count)
        return share * rows + columns
