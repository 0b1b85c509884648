"""Cross-entropy fine-tuning, with the text tower or a linear layer as the classifier.

    text head:    loss = mean_i CE( scale * <z_i, e_k>, y_i ) over the classes k, both towers trained
    linear head:  loss = mean_i CE( scale * <z_i, w_k> + b_k, y_i ), image tower and head trained

with z the image features and e_k the embedding of "a photo of a {class k}.". The classes are those seen so far, or
those of the current task and the memory. The text head is the cross-entropy ablation of FLYP (Goyal et al. 2023,
section 5); the linear head without a memory is the sequential baseline of the everclip paper (section 4.4). Its rows
start at Kaiming-uniform values, as in PyCIL, or at the zero-shot embeddings; old rows are kept when it grows.

Paper: https://arxiv.org/abs/2212.00638
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.methods._base import Batch, Clip, Cost, Method, MethodConfig, Phase, Prompts, Task
from everclip.methods._head import Head, HeadClassifier, HeadInit, columns


class Finetune(Method):
    """Cross-entropy over class embeddings or a linear head."""

    class Config(MethodConfig):
        """Options of cross-entropy fine-tuning."""

        head: Literal["text", "linear"] = Field(
            default="text",
            description="class embeddings of the text tower, or a linear layer on the image features",
        )
        head_init: HeadInit = Field(
            default="kaiming",
            description="start of a linear head's new rows: random, or the class embeddings",
        )
        classes: Literal["seen", "present"] = Field(
            default="seen",
            description="label set of the softmax: all classes seen so far, or those with images now",
        )
        label_smoothing: float = Field(
            default=0.0, ge=0, lt=1, description="share of the target spread over all classes"
        )

    config: Config
    cost = Cost(
        parameters="none; a linear head with method.head=linear",
        passes="1 of the image tower; 1 of the text tower for each class seen, none with a linear head",
    )

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.seen: list[int] = []
        self._labels: list[int] = []
        self.head = Head()

    def grow(self, clip: Clip, task: Task) -> None:
        """Append the task's classes to the label set, and their rows to a linear head."""
        self.seen += [label for label in task.classes if label not in self.seen]
        if self.config.head == "linear":
            self.head.grow_for(task, clip, self.prompts, self.config.head_init)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Settle the label set of the task."""
        present = set(np.unique(train.labels).tolist())
        self._labels = [label for label in self.seen if self.config.classes == "seen" or label in present]

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        if self.config.head == "text":
            yield from super().trainable(clip, phase)
            return
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from self.head.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = {
            "image": clip.encode_image(clip.normalise(batch.images)),
            "scale": clip.logit_scale.exp(),
        }
        if self.config.head == "text":
            texts = self.prompts.caption(self._labels, batch.rng("captions"))
            features["classes"] = clip.encode_text(texts)
        return features

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if self.config.head == "text":
            logits = features["scale"] * features["image"] @ features["classes"].T
        else:
            rows = self.head.columns(torch.tensor(self._labels)).tolist()
            logits = self.head(features["image"], features["scale"])[:, rows]
        target, smoothing = columns(self._labels, batch.labels), self.config.label_smoothing
        return {"cross_entropy": functional.cross_entropy(logits, target, label_smoothing=smoothing)}

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        if self.config.head == "text":
            return super().classifier(clip, labels)
        return HeadClassifier(clip.encode_image, self.head, labels, clip.logit_scale.exp())
