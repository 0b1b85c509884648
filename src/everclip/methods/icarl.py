"""iCaRL: one-vs-all loss with the old network's answers as targets, classified by the nearest mean of exemplars.

    q_k     = sigmoid( scale * <w_k, z> + b_k )
    loss    = - mean_ik [ r_ik log q_ik + (1 - r_ik) log(1 - q_ik) ]       over images i and all classes k seen
    r_ik    = q_ik of the model as it was before the task, for the classes k known then;  [y_i = k] for the new ones

    predict argmax_k <z, m_k>,   m_k = renormalised mean of z over the exemplars of class k, under the present model

``loss=ce`` is PyCIL's form: cross-entropy over all classes plus ``distill_weight`` times the distillation of the old
classes' softened scores. Exemplars are chosen by herding; ``flip`` averages over mirrored ones too, as the authors do.

Ours: the logit scale; r_ik = [y_i = k] for an image of the task and a known class that the task brings again (domains):
there its label is to be learned, and the old network's answers are kept on exemplars only. A seen class without
exemplars has no mean; if there is one, the head classifies instead, as with no memory.

    Parameters  a linear head
    State       head and a mean feature per class
    Passes      1 of the image tower, and 1 of its frozen copy after the first task
    Exemplars   trains on exemplars and new images, and classifies by them

Paper: https://arxiv.org/abs/1611.07725
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.config import MethodConfig
from everclip.data.images import ImageSet
from everclip.losses.distill import distillation
from everclip.methods.base.cost import Passes, teacher
from everclip.methods.base.method import Batch, Capabilities, Clip, Method, Phase, Prompts, Task, to_device
from everclip.methods.shared.head import Columns, Head, HeadClassifier, HeadInit, columns, initial_rows


class Icarl(Method):
    """Distilled one-vs-all learning and nearest-mean classification."""

    class Config(MethodConfig):
        search: ClassVar = {"loss": ("bce", "ce"), "distill_weight": (0.3, 1.0, 3.0)}
        search_only: ClassVar = {"distill_weight": ("loss", "ce")}

        loss: Literal["bce", "ce"] = Field(
            default="bce", description="one-vs-all, as published, or cross-entropy with distillation"
        )
        distill_weight: float = Field(
            default=1.0, ge=0, description="weight of the distillation with loss=ce"
        )
        temperature: float = Field(
            default=2.0, gt=0, description="temperature of the distillation with loss=ce"
        )
        classifier: Literal["nme", "head"] = Field(
            default="nme", description="nearest mean of exemplars, or linear head"
        )
        flip: bool = Field(default=False, description="whether to include mirrored exemplars in the means")
        head_init: HeadInit = initial_rows()

    capabilities = Capabilities(memory_policy="herding", needs_exemplars=True)
    config: Config
    passes = Passes(teacher(), "none", after=(0.0, 1.0))

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        means = config.classifier == "nme"
        self.can(reads="pixels" if config.flip else "features", fits="end" if means else "never")
        self.head = Head()
        self.means: Tensor
        self.register_buffer("means", torch.zeros(0, 0))
        self._known = 0
        self._again: list[int] = []
        self._old: tuple[nn.Module, ...] = ()

    def grow(self, clip: Clip, task: Task) -> None:
        """Give the task's new classes their rows, in the head and among the means."""
        self._known = len(self.head.labels)
        self._again = [row for row, label in enumerate(self.head.labels) if label in task.classes]
        self.head.grow_for(task, clip, self.prompts, self.config.head_init)
        self.means = torch.zeros_like(self.head.weight)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Keep the model as it is, to answer for the known classes."""
        if self._known:
            self._old = (clip.copy_tower(), copy.deepcopy(self.head))

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from self.head.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        images, scale = clip.normalise(batch.images), clip.logit_scale.exp()
        features = {"image": clip.encode_image(images), "scale": scale}
        if self._old:
            with torch.no_grad():
                features["old"] = clip.encode_image(images, self._old[0])
        return features

    @torch.no_grad()
    def _answers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the old network's scores ``[b, known]``."""
        return self._old[1](features["old"], features["scale"])[:, : self._known]

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        logits = self.head(features["image"], features["scale"])
        target = self.head.columns(batch.labels)
        past = self._answers(features) if self._old else logits.detach()[:, :0]
        known = past.shape[1]
        if self.config.loss == "ce":
            terms = {"cross_entropy": functional.cross_entropy(logits, target)}
            if known:
                kept = distillation(past, logits[:, :known], self.config.temperature)
                terms["distill"] = self.config.distill_weight * kept
            return terms
        wanted = functional.one_hot(target, logits.shape[1]).to(logits)
        again = torch.zeros_like(past, dtype=torch.bool)
        again[:, self._again] = batch.current[:, None]
        wanted[:, :known] = torch.where(again, wanted[:, :known], past.sigmoid())
        return {"bce": functional.binary_cross_entropy_with_logits(logits, wanted)}

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Drop the old model, and compute the exemplars' means under the new one."""
        self._old = ()
        self.means.zero_()
        for batch in memory:
            images = clip.normalise(batch.images)
            rows = columns(self.head.labels, to_device(batch, clip.device).labels)
            targets = functional.one_hot(rows, len(self.means)).T.to(self.means)
            for view in (images, images.flip(3)) if self.config.flip else (images,):
                self.means += targets @ clip.encode_image(view)
        self.means.copy_(functional.normalize(self.means, dim=1))

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        if self.config.classifier == "head" or not self.means.any(1).all():
            return HeadClassifier(clip.encode_image, self.head, labels, clip.logit_scale.exp())
        means = self.means
        nearest = Columns(lambda images: clip.encode_image(images) @ means.T, self.head.labels, labels)
        nearest.to_logits = clip.logit_scale.exp().item()
        return nearest
