"""Trains only the image tower's projection, in directions that old tasks use least (BOFA, Li et al. 2026).

    z = unit( W x ),   p_k = (1 - mix) e_k + mix v_k,   v_k = unit( W0 mu_k )         loss = CE( scale <z, p_k> )
    free    W moves in any direction, from where the last task's free phase left it (its safe phase does not count)
    safe    (from the second task on)  A = the `rank` directions in which M is smallest,  B = (W - W0) A,
            W = W0 + B A' and B alone trains
    M       = mean over earlier tasks of X'X / (n - 1) + 1e-4 I
    after   W_f = mean over tasks of the W that each has left;   score = rule g + (1 - rule) <unit( W_f x ), p_k>

x is what the tower projects, W0 its own projection, mu_k the mean of x over class k, g the scores of
methods/shared/gaussian.py. The code uses the scale's logarithm, 4.6, in place of the scale (`scale=log`), and g
outweighs the cosines even at a weight of 0.1. In the paper, which we know only from notes on it, M is the sum of all
X'X (`moments=sum`) and v_k follows W (`visual=current`). Both choose the mix by a grid on training images; here it is
an option to search. Their linear heads on x, which do not touch W, are left out, and with them what the paper does with
these heads. The loss runs over `classes`: those with images now (in the code, all seen).

    Parameters  d x w projection; then rank x d
    State       the sum of projections, a w x w sum (fp64), the rule's w x w sums, two sums per class
    Passes      1 of the image tower, without gradient; one more epoch for the means
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/2511.11421
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Images, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.classify import softmax_classes, softmax_labels
from everclip.methods.shared.gaussian import Rule
from everclip.methods.shared.head import Columns, columns
from everclip.methods.shared.prototypes import READ, Projected, free, moments

SAFE = "safe"


class Bofa(Projected):
    """A projection that learns in directions that earlier tasks left free."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"rule": (0.003, 0.03, 0.1), "mix": (0.25, 0.5, 0.75, 1.0)}
        search_first: ClassVar = ("rule",)

        classes: Literal["seen", "present"] = softmax_classes()
        rank: int = Field(
            default=64, ge=1, description="number of directions in which later tasks move the projection"
        )
        safe_epochs: int = Field(default=2, ge=1, description="epochs of moving in these directions")
        mix: float = Field(
            default=0.5, ge=0, le=1, description="weight of class means; embeddings get the rest"
        )
        visual: Literal["first", "current"] = Field(
            default="first", description="projection of the class means: the tower's own, or as learned"
        )
        scale: Literal["log", "exp"] = Field(default="log", description="scale of cosines in the loss")
        moments: Literal["mean", "sum"] = Field(
            default="mean", description="M: mean over tasks, or over images"
        )
        rule: float = Field(default=0.1, ge=0, le=1, description="weight of the Gaussian rule")

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.moved, self._basis = nn.Parameter(torch.zeros(1, 1)), torch.zeros(1, 1)
        self._labels: list[int] = []

    def build(self, clip: Clip, width: int) -> None:
        super().build(clip, width)
        first = self.weight.detach()
        self.moved = nn.Parameter(first.new_zeros(len(first), min(self.config.rank, first.shape[1])))
        self.kept |= {"total": torch.zeros_like(first), "tasks": torch.zeros(1, device=clip.device)}
        self.kept["moments"] = torch.zeros(first.shape[1], first.shape[1], dtype=torch.float64)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._labels = softmax_labels(self.config.classes, self.seen, train)

    def phases(self, task: Task) -> list[Phase]:
        safe = [Phase(SAFE, self.config.safe_epochs)] if task.index else []
        return [READ, Phase("free"), *safe]

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Take what the free phase has learned along the free directions."""
        if phase.name == SAFE:
            self._basis = free(self.kept["moments"], self.moved.shape[1]).to(self.weight)
            with torch.no_grad():
                self.moved.copy_((self.weight - self.first) @ self._basis)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield self.moved if phase.name == SAFE else self.weight

    def projection(self, phase: str) -> Float[Tensor, "d w"]:
        """Return W of a phase."""
        return self.first + self.moved @ self._basis.T if phase == SAFE else self.weight

    def mixed(self, text: Float[Tensor, "c d"], weight: Float[Tensor, "d w"]) -> Float[Tensor, "c d"]:
        """Return p of the classes seen; for a class without images its embedding."""
        means, mix = self.prototypes(), self.config.mix
        used = self.first if self.config.visual == "first" else weight.detach()
        visual = self.project(means, used)
        known = (means != 0).any(1, keepdim=True)
        return torch.where(known, (1 - mix) * text + mix * visual, text)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name == READ.name:
            return self.read(clip, batch)
        return {"rows": clip.whole(self.pooled(clip, batch.images)), "scale": clip.logit_scale.exp()}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name == READ.name:
            return dict(features)
        weight, scale = self.projection(phase.name), features["scale"]
        z = self.project(features["rows"], weight)
        sharp = scale.log() if self.config.scale == "log" else scale
        where = self.places(torch.tensor(self._labels))
        logits = sharp * z @ self.mixed(self.text, weight)[where].T
        return {"cross_entropy": cross_entropy(logits, columns(self._labels, batch.labels).to(z.device))}

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Add the task's projection, its moments, class means and the rule's sums."""
        parts = [(rows, batch.labels) for batch, rows in self.reread(clip, new)]
        rows, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        Rule(self.kept).add(len(self.prompts.names), rows, labels)
        self.kept["total"] += self.projection(SAFE if task.index else "free")
        self.kept["tasks"] += 1
        self.kept["moments"] += moments(rows.to(self.kept["moments"]), self.config.moments == "mean")

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        known = [label for label in self.seen if self.kept["counts"][label] > 0]
        weight = self.kept["total"] / self.kept["tasks"].clamp(min=1)
        places = [self.seen.index(label) for label in known]
        p, g, share = self.mixed(self.text, weight)[places], Rule(self.kept).scorer(known), self.config.rule

        def score(images: Images) -> Float[Tensor, "b c"]:
            rows = self.pooled(clip, images)
            z = self.project(rows, weight)
            return share * g(rows).to(z) + (1 - share) * z @ p.T

        return Columns(score, known, labels)
