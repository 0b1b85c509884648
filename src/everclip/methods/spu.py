"""Trains few weights of each block's first MLP layer, chosen per task by their gradient (SPU, Zhang et al. 2024).

    loss   = mean of the cross-entropies image -> caption and caption -> image over the batch     (that of `clip`)
    step   = gradient x mask;   mask: the `share` of each weight matrix with the largest |score|

Candidates are the first MLP layers of the transformer blocks of both towers; their biases and the image tower's
projection train whole. Before a task its images are read once, without changing any weight, for the scores:

    code    sum over batches b of n of (n - b + 1) g_b,  g_b the gradient of mean_i |row i of s Z T'|^2
    paper   the mean over batches of the gradient of the loss

Z and T are features of images and captions, s the fixed logit scale. The code's gradients are never reset, so that
early batches weigh more, and it stops after a quarter of them (`score_share`). In the code, weight decay also shrinks
what the mask leaves out (`decay=all`). A batch of one class has nothing to learn from and is left out (ours), except in
the scores of `score=code`. A matrix that no batch has scored does not train.

    Parameters  none
    State       none; in a task masks, scores and a copy of the candidates
    Passes      1 of both towers for each class of the batch; one more epoch for the scores
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2308.12462
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.errors import UserError
from everclip.losses.contrastive import clip_loss
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, MethodConfig, Phase, Prompts, Task, pairs
from everclip.methods.shared.weights import Kept, largest
from everclip.models.towers import first_layers, projection

SCORE = "score"


class Spu(Kept):
    """Selective parameter update."""

    class Config(MethodConfig):
        search: ClassVar = {"share": (0.01, 0.1, 0.5)}
        share: float = Field(default=0.1, gt=0, le=1, description="fraction of a weight matrix that trains")
        score: Literal["code", "paper"] = Field(
            default="code", description="loss that scores a weight, and how batches add up"
        )
        score_share: float = Field(
            default=0.25, gt=0, le=1, description="fraction of a task's batches to score on"
        )
        decay: Literal["selected", "all"] = Field(
            default="selected", description="what weight decay shrinks: what trains, or every candidate"
        )

    config: Config
    capabilities = Capabilities(shares=False, shards=False)
    passes = Passes(lambda stage: (1.0, 0.0), "batch")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self._start: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._ready, self._limit, self._phase = False, 1, Phase()

    def phases(self, task: Task) -> list[Phase]:
        return [Phase(SCORE, 1, data="new"), Phase()]

    def candidates(self, clip: Clip) -> dict[str, nn.Parameter]:
        """Return the weights that may train. Raises UserError if there are none, or tune=lora adds to them."""
        every, layers = dict(clip.model.named_parameters()), first_layers(clip.model)
        if not layers:
            raise UserError(
                f"method=spu chooses among the MLPs of transformer blocks, but no tower of {clip.name} has such"
                " blocks: use model=ViT-B-16:laion400m_e32 or another ViT, or another method"
            )
        parts = (f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))
        names = [*parts, *projection(clip.model.visual)]
        if not all(name in every for name in names):
            raise UserError(
                "method=spu chooses among a weight's entries, which tune=lora adds to: use tune=full or tune=top"
            )
        return {name: every[name] for name in names}

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        self._start = {name: value.detach().clone() for name, value in self.candidates(clip).items()}
        self.kept = {}

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Choose the entries that train, once they are scored."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._ready, self._phase = [], False, phase
        self._limit = max(1, round(self.config.score_share * phase.steps))
        scores = self.part("score ")
        if phase.name != SCORE and scores:
            self.kept = {f"mask {n}": largest(v.abs(), self.config.share) for n, v in scores.items()}

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.candidates(clip).values()

    def watch(self, clip: Clip) -> None:
        """Read gradients, or mask them, from here on."""
        self._ready, scoring = True, self._phase.name == SCORE
        for name, value in self.candidates(clip).items():
            if value.requires_grad and value.ndim > 1 and name not in projection(clip.model.visual):
                if not scoring:  # what no gradient has scored stays as it is
                    self.kept.setdefault(f"mask {name}", torch.zeros_like(value, dtype=torch.bool))
                read = self._read if scoring else self._mask
                self._hooks.append(value.register_hook(lambda g, name=name, read=read: read(name, g)))

    def _read(self, name: str, gradient: Tensor) -> None:
        if not gradient.isfinite().all():  # of a batch that train.nonfinite=skip leaves out
            return
        parts = ("sum", "score") if self.config.score == "code" else ("score",)
        for part in parts:  # the code's gradient is the sum of all so far
            gradient = self.kept.get(f"{part} {name}", 0) + gradient
            self.kept[f"{part} {name}"] = gradient

    def _mask(self, name: str, gradient: Tensor) -> Tensor:
        return gradient * self.kept[f"mask {name}"]

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if not self._ready:  # a hook needs a parameter that takes a gradient
            self.watch(clip)
        if phase.name == SCORE and batch.number >= self._limit:
            return {"scale": clip.logit_scale.exp()}
        return pairs(clip, self.prompts, batch)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        nothing = {"clip": torch.zeros_like(features["scale"])}
        if "image" not in features:
            return nothing
        image, text, scale = (features[name] for name in ("image", "text", "scale"))
        if phase.name == SCORE and self.config.score == "code":
            return {"norm": (scale * image @ text.T).square().sum(1).mean()}
        return nothing if len(batch.labels.unique()) == 1 else {"clip": clip_loss(image, text, scale)}

    @torch.no_grad()
    def after_step(self, clip: Clip) -> None:
        """Put back what does not train."""
        for name, value in self.candidates(clip).items():
            if self._phase.name == SCORE:
                value.copy_(self._start[name])
            elif self.config.decay == "selected" and (mask := self.kept.get(f"mask {name}")) is not None:
                value.copy_(torch.where(mask, value, self._start[name]))

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Forget what served this task alone."""
        self.begin_phase(clip, Phase())
        self._start, self.kept = {}, {}
