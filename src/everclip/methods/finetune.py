"""Cross-entropy over the prompts: fine-tuning both towers with the text tower as the classifier.

    loss = mean_i CE( scale * <z_i, e_k> over the classes k, y_i )

with z the image features and e_k the embedding of "a photo of a {class k}.". The classes are those seen so far, or
those of the current task and the memory. This is the cross-entropy ablation of FLYP (Goyal et al. 2023, section 5)
and, without a memory, the sequential baseline of the everclip paper (section 4.4) with a text head.

Paper: https://arxiv.org/abs/2212.00638
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.methods._base import Batch, Clip, Method, MethodConfig, Phase, Prompts, Task


class Finetune(Method):
    """Cross-entropy over class embeddings."""

    class Config(MethodConfig):
        """Options of cross-entropy fine-tuning."""

        classes: Literal["seen", "present"] = Field(
            default="seen",
            description="label set of the softmax: all classes seen so far, or those with images now",
        )
        label_smoothing: float = Field(
            default=0.0, ge=0, lt=1, description="share of the target spread over all classes"
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        # Label -> column of the softmax, -1 for classes that are not in it; a buffer, so that a resume has it.
        self.register_buffer("column", torch.full((len(prompts.names),), -1))

    def grow(self, task: Task) -> None:
        """Append the task's classes to the label set."""
        column = self.get_buffer("column")
        for label in task.classes:
            if column[label] < 0:
                column[label] = int(column.max()) + 1

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Narrow the label set to the classes that have images, where asked to."""
        if self.config.classes == "present":
            column = self.get_buffer("column").fill_(-1)
            present = np.unique(train.labels)
            column[torch.from_numpy(present)] = torch.arange(len(present), device=column.device)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        column = self.get_buffer("column")
        labels = torch.argsort(column)[(column < 0).sum() :].tolist()
        return {
            "image": clip.encode_image(clip.normalise(batch.images)),
            "classes": clip.encode_text(self.prompts.caption(labels, batch.rng("captions"))),
            "scale": clip.logit_scale.exp(),
        }

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        logits = features["scale"] * features["image"] @ features["classes"].T
        target = self.get_buffer("column")[batch.labels]
        return {
            "cross_entropy": functional.cross_entropy(
                logits, target, label_smoothing=self.config.label_smoothing
            )
        }
