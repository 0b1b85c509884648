"""What GCL and GDRO share: image-caption pairs, and two moving averages a sample, kept across tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from everclip.losses import contrastive
from everclip.methods._base import Batch, Clip, Method, MethodConfig, Phase, Prompts, pairs
from everclip.sample_table import SampleTable


class ContrastiveConfig(MethodConfig):
    """Options of both losses."""

    tau: float = Field(0.05, gt=0, description="temperature")
    gamma: float = Field(0.8, gt=0, le=1, description="share of the fresh value in the moving averages; 1: batch only")


@dataclass(frozen=True, eq=False)
class Anchors:
    """A batch after its estimators were updated.

    Args:
        losses: l(d1), l(d2), ``[b, b]`` each, with gradient.
        among: N_i.
        log_u: ``[b, 2]``; 0 for an anchor without negatives.
        value: ``[b]``: tau log u1 + tau log u2, each anchor's part of the objective.
        active: ``[b]``: anchors that have negatives.
    """

    losses: tuple[Float[Tensor, "b b"], Float[Tensor, "b b"]]
    among: Bool[Tensor, "b b"]
    log_u: Float[Tensor, "b 2"]
    value: Float[Tensor, " b"]
    active: Bool[Tensor, " b"]


class Contrastive(Method):
    """Base of the global contrastive losses."""

    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.estimators = SampleTable(2)
        self.last: dict[str, float] = {}

    def tables(self) -> dict[str, SampleTable]:
        return {"estimators": self.estimators}

    def drop(self, ids: NDArray[Any]) -> None:
        self.estimators.drop(ids)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return pairs(clip, self.prompts, batch)

    def diagnostics(self) -> dict[str, float]:
        return self.last

    def update_estimators(
        self, losses: tuple[Tensor, Tensor], among: Bool[Tensor, "b b"], batch: Batch
    ) -> Anchors:
        """Mix this batch's means into the samples' moving averages (equation 4), which are then used updated."""
        config = self.config
        fresh = torch.stack([contrastive.log_mean_exp(loss.detach() / config.tau, among) for loss in losses], 1)
        active = among.any(1)
        old, seen = self.estimators.get(batch.ids)
        log_u = contrastive.moving_average(
            old.to(fresh), seen[:, None].to(fresh.device), fresh, config.gamma
        ).masked_fill(~active[:, None], 0)
        self.estimators.set(batch.ids[active.cpu()], log_u[active])
        self.last = {"log_u_mean": log_u[active].mean().item(), "log_u_max": log_u[active].max().item()} if (
            bool(active.any())
        ) else {}
        return Anchors(losses, among, log_u, config.tau * log_u.sum(1), active)


def valued(gradient: Float[Tensor, ""], value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A term with the gradient of one scalar and the value of another: what is logged is the objective."""
    return gradient + (value - gradient).detach()
