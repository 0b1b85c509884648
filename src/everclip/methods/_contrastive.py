"""What GCL and GDRO share: image-caption pairs, and two moving averages a sample, kept across tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from everclip.losses import contrastive
from everclip.methods._base import Batch, Clip, Method, MethodConfig, Phase, Prompts, pairs
from everclip.sample_table import SampleTable


class ContrastiveConfig(MethodConfig):
    """Options of both losses."""

    tau: float = Field(default=0.05, gt=0, description="temperature")
    gamma: float = Field(
        default=0.8, gt=0, le=1, description="share of the fresh value in the moving averages; 1: batch only"
    )
    negatives: Literal["instance", "other_class", "multi_positive"] = Field(
        default="instance",
        description="every other pair; only pairs of other classes; or these, with the mean similarity to all pairs"
        " of the class as the positive",
    )
    surrogate: Literal["identity", "squared_hinge"] = Field(
        default="identity",
        description="of a difference of similarities: itself, or max(0, margin + difference)^2",
    )
    margin: float = Field(
        default=0.3, ge=0, le=2, description="of the squared hinge: a negative this far below is free"
    )


@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of pairs, each compared with its negatives, after the estimators were updated.

    Args:
        losses: l(d1), l(d2), ``[b, b]`` each, with gradient.
        among: the negatives N_i.
        log_u: ``[b, 2]``; 0 for a pair without negatives.
        value: ``[b]``: tau log u1 + tau log u2, each pair's part of the objective.
        active: ``[b]``: pairs that have negatives.
    """

    losses: tuple[Float[Tensor, "b b"], Float[Tensor, "b b"]]
    among: Bool[Tensor, "b b"]
    log_u: Float[Tensor, "b 2"]
    value: Float[Tensor, " b"]
    active: Bool[Tensor, " b"]


class Contrastive(Method):
    """Base of the global contrastive losses."""

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

    def compare(self, features: Mapping[str, Tensor], batch: Batch, config: ContrastiveConfig) -> Pairs:
        """Compare each pair with its negatives, and mix the batch's means into the moving averages (equation 4).

        The averages are then used as updated.
        """
        among = contrastive.negatives(batch.labels, config.negatives)
        positives = ~among if config.negatives == "multi_positive" else None
        first, second = contrastive.differences(features["image"] @ features["text"].T, positives)
        losses = (
            contrastive.pair_loss(first, config.surrogate, config.margin),
            contrastive.pair_loss(second, config.surrogate, config.margin),
        )
        active = among.any(1)
        old, seen = self.estimators.get(batch.ids)
        fresh = contrastive.log_means(losses, among, config.tau)
        log_u = contrastive.moving_average(
            old.to(fresh), seen[:, None].to(fresh.device), fresh, config.gamma
        ).masked_fill(~active[:, None], 0)
        self.estimators.set(batch.ids[active.cpu()], log_u[active])
        self.last = {}
        if active.any():
            self.last = {"log_u_mean": log_u[active].mean().item(), "log_u_max": log_u[active].max().item()}
        return Pairs(losses, among, log_u, contrastive.objective(log_u, config.tau), active)


def valued(gradient: Float[Tensor, ""], value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A term with the gradient of one scalar and the value of another: what is logged is the objective."""
    return gradient + (value - gradient).detach()
