"""CaSSLe: a task's own contrastive loss, and a predictor from current projections to those of the previous task.

    L   = task loss + w L_D
    L_D = 1/2 [ NCE( g(z), z* ) + NCE( z*, g(z) ) ],    NCE(a, b) = mean_i -log softmax_j( <a_i, b_j>/tau_distill )_i

over two views of B images, 2B rows in all, with z their current projections, z* those of the frozen model of the
previous task, and g the predictor; z* and the outputs of g have unit length. L_D starts with the second task. The task
loss is the contrast of classes (SupCon), of images (SimCLR), or SogCLR's:

    F = mean_i [ -2 <a_i, b_i> + tau log u1_i + tau log u2_i ]
    u1_i = (1 - gamma) u_i + gamma mean_n exp( <a_i, n>/tau ),    u2_i with b_i

with a, b the two views, n both views of the other images, and u_i = (u1_i + u2_i)/2 kept per image. No exemplars are
kept. A linear probe is learned on the frozen features of the task's images, which suits domains that share their
classes; `method.probe=mixed` keeps exemplars for the probe alone.

    Parameters  a projector and a predictor of two layers each; a linear head
    State       projector, predictor, head; one moving average (fp32) per exemplar with sogclr and method.probe=mixed
    Passes      2 of the image tower (two views), 2 of its frozen copy after the first task; 1 for the probe
    Exemplars   none; method.probe=mixed learns the probe on them too

Paper: https://arxiv.org/abs/2112.04215
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.losses.contrastive import clip_loss
from everclip.methods.base.method import Batch, Clip, Prompts, Task
from everclip.methods.shared.represent import TwoViews, ViewsConfig, mlp


class Cassle(TwoViews):
    """Self-supervised models are continual learners."""

    class Config(ViewsConfig):
        search: ClassVar = {"tau": (0.1, 0.5), "distill": (0.3, 1.0, 3.0), "probe_penalty": (0.01, 0.1, 1.0)}

        hidden: int | None = Field(
            default=2048,
            ge=1,
            description="width of the hidden layers of projector and predictor; none: that of the features",
        )
        distill: float = Field(default=1.0, ge=0, description="w: weight of L_D; 0: off")
        tau_distill: float = Field(default=0.2, gt=0, description="temperature of L_D")
        predictor: Literal["kept", "fresh", "none"] = Field(
            default="kept",
            description="predictor g: kept from task to task, made anew in each, or left out: g(z) = z",
        )
        probe: Literal["current", "mixed"] = Field(
            default="current",
            description="images of the linear probe: the task's, or these and exemplars kept for it",
        )

    config: Config
    represent_data = "new"

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(uses_memory=config.probe == "mixed")
        self.probe_data = "mixed" if config.probe == "mixed" else "new"
        self.predictor: nn.Module = nn.Identity()

    def grow(self, clip: Clip, task: Task) -> None:
        """Make the predictor together with the projector, or anew for each task with ``predictor=fresh``."""
        first = not self.head.labels
        super().grow(clip, task)
        if self.config.predictor == "fresh" or (first and self.config.predictor == "kept"):
            width = self.config.projection
            self.predictor = mlp(width, self.config.hidden or width, width, norm=True).to(clip.device)

    def learners(self, clip: Clip) -> Iterator[nn.Parameter]:
        yield from super().learners(clip)
        if self._teacher and self.config.distill > 0:
            yield from self.predictor.parameters()

    def contrast(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        projected = self.projector(features["image"])
        terms = {"contrast": self.objective(normalize(projected, dim=1), batch)}
        past = self.past(features)
        if past is not None and self.config.distill > 0:
            found = normalize(self.predictor(projected), dim=1)
            terms["distill"] = self.config.distill * clip_loss(found, past, 1 / self.config.tau_distill)
        return terms
