"""FOSTER: boosts a second image tower to fit what the first cannot, then compresses both into one.

    boost      f = [ f_old, f_new ],  o = scale * W f + b
               loss = CE( o / w, y ) + CE( scale * V f_new + c, y ) + okd_weight * KD_T( o_old, o over the old classes )
    compress   loss = mean_i - sum_k p_ik log softmax( s_i / T )_k,   p_ik ~ w'_k softmax( o_i / T )_k

f_new starts as f_old, which is frozen, as is the old head with its scores o_old. w is large for rare classes, so their
scores are divided by more: w_k ~ (1 - beta) / (1 - beta^n_k) with mean 1 over the n_k images, new and memory, of each
class. Compression learns from the boosted pair alone, without labels: the student s is the old tower with the old
head's rows, and it becomes the model's image tower. KD_T is the cross-entropy of softened scores. In the first task
there is plain cross-entropy. Exemplars are chosen by herding.

Ours: unit-length features and the logit scale; n_k counted, and w = w' = 1 where a class seen has no image. Where tasks
bring domains instead of classes, all scores are old ones and both phases stay the same.

    Parameters  a linear head; from the second task on two more, for boosting
    State       the heads
    Passes      1 of the image tower, and after the first task 1 of a frozen copy (boosting) and 2 (compression)
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2204.04662
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.losses.distill import distillation, effective_weights
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Method, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.head import Head, HeadClassifier, HeadInit, initial_rows


class Foster(Method):
    """Boosting, then compression."""

    class Config(MethodConfig):
        search: ClassVar = {"beta_boost": (0.0, 0.5, 0.9, 0.96)}

        boost: bool = Field(default=True, description="train the second tower; if not, only its heads")
        beta_boost: float = Field(default=0.96, ge=0, lt=1, description="beta of the weights w; 0: equal")
        beta_compress: float | None = Field(
            default=None,
            ge=0,
            lt=1,
            description="beta of the weights w'; none: beta_boost",
            json_schema_extra={"before": 0.97},
        )
        absent: Literal["alike", "rare"] = Field(
            default="alike",
            description="weights if a seen class has no image: all equal (alike), or as if it had one (rare)",
            json_schema_extra={"before": "rare"},
        )
        okd_weight: float = Field(default=1.0, ge=0, description="weight of the distillation in boosting")
        temperature: float = Field(default=2.0, gt=0, description="temperature of both distillations")
        compress_epochs: int | None = Field(
            default=None, ge=1, description="epochs of compression; none: as in boosting"
        )
        head_init: HeadInit = initial_rows()

    capabilities = Capabilities(memory_policy="herding", needs_exemplars=True)
    config: Config
    passes = Passes(
        lambda stage: (2.0, 3.0) if stage else (1.0, 0.0),
        "none",
        after=(0.0, 1.0),
        frozen=lambda stage: 2.0,
        saved=lambda stage: 1.0,
    )

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.head, self.boosted, self.newest = Head(), Head(), Head()
        self._known: list[int] = []
        self._weights: tuple[Tensor, ...] = ()
        self._towers: tuple[nn.Module, ...] = ()
        self._start: dict[str, Tensor] = {}

    def grow(self, clip: Clip, task: Task) -> None:
        """Append rows for new classes; from the second task on make the heads that only boosting needs."""
        self._known, init = list(self.head.labels), self.config.head_init
        if self._known:
            self.boosted = copy.deepcopy(self.head)
            self.boosted.widen(self.head.weight.shape[1], init)
            self.boosted.grow_for(task, clip, self.prompts, init, 2)
        self.head.grow_for(task, clip, self.prompts, init)
        if self._known:
            self.newest = Head()
            everything = replace(task, classes=tuple(self.head.labels))
            self.newest.grow_for(everything, clip, self.prompts, init)

    def phases(self, task: Task) -> list[Phase]:
        compress = Phase("compress", self.config.compress_epochs, train={"weight_decay": 0.0})
        return [Phase("boost"), compress] if self._known else [Phase()]

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Count the images of each class, and keep the tower as it is."""
        counts = torch.tensor([int(np.sum(train.labels == label)) for label in self.head.labels])
        # One class without an image would take nearly all of the weight, and leave those with images none.
        alike = self.config.absent == "alike" and not counts.all()
        boost, compress = self.config.beta_boost, self.config.beta_compress
        betas = (0.0, 0.0) if alike else (boost, boost if compress is None else compress)
        self._weights = tuple(effective_weights(counts, beta).to(clip.device) for beta in betas)
        if self._known:
            self._towers = (clip.copy_tower(),)
            # not the copy's: low-rank updates have parameters of their own
            self._start = copy.deepcopy(clip.model.visual.state_dict())

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Set the boosted tower aside before compression, and restore the old image tower."""
        if phase.name == "compress":
            self._towers = (*self._towers, clip.copy_tower())
            clip.model.visual.load_state_dict(self._start)
            self._start = {}

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        if phase.name != "boost" or self.config.boost:
            yield from (parameter for _, parameter in clip.image_parameters())
        for head in (self.boosted, self.newest) if phase.name == "boost" else (self.head,):
            yield from head.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        images = clip.normalise(batch.images)
        with torch.no_grad():
            frozen = [clip.encode_image(images, tower) for tower in self._towers]
        features = {"image": clip.encode_image(images), "scale": clip.logit_scale.exp()}
        return features | dict(zip(("old", "boosted"), frozen, strict=False))

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        image, scale, target = features["image"], features["scale"], self.head.columns(batch.labels)
        if phase.name == "boost":
            return self._boost(features, target)
        if phase.name == "compress":
            with torch.no_grad():
                teacher = self.boosted(torch.cat([features["old"], features["boosted"]], 1), scale)
            student, weights = self.head(image, scale), self._weights[1]
            return {"distill": distillation(teacher, student, self.config.temperature, weights)}
        return {"cross_entropy": functional.cross_entropy(self.head(image, scale), target)}

    def _boost(self, features: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """Return terms of the boosting phase; ``head`` has the old rows, untouched until compression."""
        old, image, scale = features["old"], features["image"], features["scale"]
        logits, known = self.boosted(torch.cat([old, image], 1), scale), len(self._known)
        kept = distillation(self.head(old, scale)[:, :known], logits[:, :known], self.config.temperature)
        return {
            "cross_entropy": functional.cross_entropy(logits / self._weights[0], target),
            "newest": functional.cross_entropy(self.newest(image, scale), target),
            "distill": self.config.okd_weight * kept,
        }

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Drop the towers that the student, now the model, has learned from."""
        self._towers = ()

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        return HeadClassifier(clip.encode_image, self.head, labels, clip.logit_scale.exp())
