"""Learning without forgetting, for CLIP: distils the answers of the previous task's model.

    loss = CE + w_I T^2 KD_T( S* -> S ) + w_T T^2 KD_T( S*^T -> S^T )      the last two from the second task on
    S = s z E*^T,  S* = s z* E*^T,   KD_T(p -> q) = mean over rows of - sum softmax(p / T) log softmax(q / T)

z and z* are features of the batch's images by the model and by a frozen copy of it as the previous task left it, and E*
that copy's embeddings of the reference texts: the prompts of old classes (the choice nearest to Li and Hoiem 2016), of
the task's classes, or a thousand random sentences (lwf-vr); for data with captions, at most a thousand of those at
hand, new and memory, since old ones are not kept. This is the form of ZSCL's authors for class-incremental CLIP, after
Ding et al. 2022: both directions with weight 5, T = 2, smoothed labels, CE over the classes at hand, a fixed logit
scale. Published without a memory: memory.budget=0.

    Parameters  none
    State       none
    Passes      2 of the image tower, one of them without gradient, from the second task on; 1 of the text tower for
                each class with images now; the copied tower is gone when the task ends
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/1606.09282, for CLIP https://arxiv.org/abs/2207.09248
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.methods.base.cost import Passes, teacher
from everclip.methods.base.method import Batch, Clip, Phase, Prompts, Task
from everclip.methods.shared.distilling import Distilling, DistillingConfig, captions, sentences, some


class Lwf(Distilling):
    """Distillation from the previous task's model."""

    class Config(DistillingConfig):
        search: ClassVar = {"image_weight": (1.0, 5.0, 20.0), "text_weight": (1.0, 5.0, 20.0)}

        reference: Literal["old", "current", "random"] = Field(
            default="old",
            description="reference texts: prompts of old classes, of the task's, or random sentences",
        )

    config: Config
    passes = Passes(teacher(), "seen")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self._old: list[int] = []
        self._teacher: tuple[nn.Module, ...] = ()

    def grow(self, clip: Clip, task: Task) -> None:
        self._old = list(self.seen)
        super().grow(clip, task)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Copy the model as the task before left it; the first task has nothing to keep."""
        super().begin_task(clip, task, train)
        self._teacher = ()
        if not self._old:
            return
        self._teacher = (clip.copy_tower(),)
        if self.config.reference == "random":
            texts = sentences()
        elif train.captions is not None:
            texts = some(train.captions.gallery(train.rows).texts)
        else:
            labels = self._old if self.config.reference == "old" else task.classes
            texts = captions(self.prompts.names[label] for label in labels)
        with torch.no_grad():
            self._texts = clip.encode_text(texts)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = super().encode(clip, batch, phase)
        if self._teacher:
            features["reference"] = features["image"]
            with torch.no_grad():
                features["teacher"] = clip.encode_image(batch.images, self._teacher[0])
        return features

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        self._teacher = ()
