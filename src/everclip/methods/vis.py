"""Ridge regression on random features of a mixture of blocks, without a prompt (Vis, Hu et al. 2026).

    m      = [ c_L ; c_{L-2} ; c_{L-4} ; c_{L-6} ]                 class tokens of blocks, as they are
    u      = c_L + U gelu(V m + b) + b'                            U = b' = 0 at the start
    task 1 : CE( a linear layer on u, y ) + stay |u - c_L|^2       then the layer goes and the mixer stays
    phi    = [ relu(R' u) ; 1 ],   W = (sum phi phi' + lam I)^-1 sum phi y',   scores W' phi    R in N(0, 1), drawn once

The paper's targets are 1 and -1 and its sums count each image ten times. Neither changes an argmax: with w the solution
for the target 1, its weights are 2 W - w 1' at a tenth of its lam, so `lam` here is a tenth of the paper's. lam is
chosen once, on a fifth of the first task's images: of 1e-7, 1e-6, ..., 1e8 the one with the least squared error. From
the second task on nothing trains, and the order of tasks makes no difference.

    Parameters  in the first task the mixer (hidden x 5 d at width d) and a linear layer
    State       the mixer; M x M sums, M sums per class (fp64): 1.8 GB at M = 15000; R is drawn again
    Passes      1 of the image tower; in the first task as many more as it has epochs
    Exemplars   none

Paper: https://arxiv.org/abs/2609.37888
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Phase, Prompts, Task
from everclip.methods.shared.head import columns
from everclip.methods.shared.ridge import LamConfig, RidgeMethod, Weights
from everclip.methods.shared.statistics import Labels
from everclip.models.depths import Depths


class Vis(RidgeMethod):
    """A mixer of blocks trained on the first task, then ridge regression on random features."""

    class Config(LamConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"stay": (0.001, 0.01, 0.1)}
        blocks: list[int] = Field(
            default=[0, 2, 4, 6],
            min_length=1,
            description="blocks to mix, counted from the last (0); those that the tower lacks are ignored",
        )
        hidden: int = Field(default=256, ge=0, description="width of the mixer; 0: use the last block alone")
        stay: float = Field(
            default=0.01, ge=0, description="weight of the squared distance that the mixer moves a feature"
        )
        width: int = Field(default=15_000, ge=0, description="M, random features; 0: u itself")
        lam_choice: Literal["first", "gcv", "fixed", "task", "seen"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
            default="first",
            description="how to choose lam: on a fifth of the first task's images (first); by generalised"
            " cross-validation on the sums (gcv); lam itself (fixed); on a fifth of each new task's images,"
            " fitted on the rest (task) or also on all earlier tasks (seen)",
        )

    config: Config
    grid = tuple(
        10.0**exponent for exponent in range(-7, 9)
    )  # up to the size of G, whatever the scale of features
    bias = True
    passes = Passes(
        lambda stage: (0.0, float(stage == 0)), "none", after=(0.0, 1.0), frozen=lambda stage: 0.0
    )

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.mixer, self.head = nn.Module(), nn.Module()  # none yet
        self._labels: list[int] = []
        self._last = 0  # width of the last block
        wanted = {0, *config.blocks} if config.hidden else {0}
        weights = tuple(float(place in wanted) for place in range(max(wanted) + 1))
        self.depths = Depths(weights, root=False, mirror=False, raw=True)
        self.widen(config.width)
        self.can(trains=config.hidden > 0, reads="pixels", centers=False)

    @torch.no_grad()
    def grow(self, clip: Clip, task: Task) -> None:
        """Make the mixer and a linear layer for the first task; the second drops the layer."""
        super().grow(clip, task)
        self.head = nn.Module()
        if task.index == 0 and self.config.hidden:
            self._labels = list(task.classes)
            self.head = nn.Linear(self._last, len(task.classes)).to(clip.device)

    def build(self, clip: Clip, width: int) -> None:
        alone = Depths((1.0,), root=False, raw=True)
        self._last = alone.read(clip.model.visual, clip.normalise(clip.blank())).shape[1]
        if self.config.hidden:
            up = nn.Linear(self.config.hidden, self._last)
            for part in up.parameters():
                nn.init.zeros_(part)
            self.mixer = nn.Sequential(nn.Linear(width, self.config.hidden), nn.GELU(), up).to(clip.device)
        super().build(clip, self._last)

    def mixed(self, blocks: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """Return u of blocks side by side, the last first."""
        last = blocks[:, : self._last]
        return last + self.mixer(blocks) if self.config.hidden else last

    def lift(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        return super().lift(self.mixed(features))

    def phases(self, task: Task) -> list[Phase]:
        return [Phase("mix", data="new")] if task.index == 0 and self.config.hidden else []

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.mixer.parameters()
        yield from self.head.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"blocks": clip.whole(self.extract(clip, batch.images))}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        blocks = features["blocks"]
        u, target = self.mixed(blocks), columns(self._labels, batch.labels)
        stay = (u - blocks[:, : self._last]).square().sum(1).mean()
        return {"cross_entropy": cross_entropy(self.head(u), target), "stay": self.config.stay * stay}

    def choose(self, features: Float[Tensor, "b d"], labels: Labels, weights: Weights, order: Labels) -> None:
        """Set lam by a fifth of the images, with ``lam_choice=first`` only once."""
        if self.config.lam_choice != "first" or self.chosen == 0:
            super().choose(features, labels, weights, order)
