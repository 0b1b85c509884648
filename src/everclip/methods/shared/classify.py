"""Train with cross-entropy over the classes, with the text tower or a linear head, for several methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Method, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.head import Head, HeadClassifier, HeadInit, columns, initial_rows


class HeadConfig(MethodConfig):
    """Options for the head that gives the scores."""

    head: Literal["text", "linear"] = Field(
        default="text", description="class embeddings of the text tower, or a linear layer on image features"
    )
    head_init: HeadInit = initial_rows()


def softmax_classes(**extra: Any) -> Any:
    """Return the field of a ``Config`` for the classes in the softmax, with its earlier default if that differs."""
    said = "classes in the softmax: all seen so far, or only those with images now"
    return Field(default="present", description=said, json_schema_extra=extra or None)


def softmax_labels(classes: str, seen: Sequence[int], train: ImageSet) -> list[int]:
    """Return the labels in the softmax by the option ``classes``, among those seen, in the order learned."""
    present = set(np.unique(train.labels).tolist())
    # A class without images would be pushed down by all others, with nothing to hold it up.
    return [label for label in seen if classes == "seen" or label in present]


class ClassesConfig(MethodConfig):
    """Options for the classes that the softmax runs over."""

    classes: Literal["seen", "present"] = softmax_classes(before="seen")


class LabelsConfig(ClassesConfig):
    """Options for the classes that the softmax runs over, and for its targets."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of the target spread over all classes"
    )


class Classify(Method):
    """Cross-entropy over class embeddings or a linear head. What a config does not offer stays at its default.

    ``seen`` has the labels in the order learned, like the rows of a linear head.
    """

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self._scores = config if isinstance(config, HeadConfig) else HeadConfig()
        self._classes = (config if isinstance(config, ClassesConfig) else ClassesConfig()).classes
        self._smoothing = config.label_smoothing if isinstance(config, LabelsConfig) else 0.0
        self.seen: list[int] = []
        self._labels: list[int] = []
        self.head = Head()

    def grow(self, clip: Clip, task: Task) -> None:
        """Append the task's classes to the label set, and their rows to a linear head."""
        self.seen += [label for label in task.classes if label not in self.seen]
        if self._scores.head == "linear":
            self.head.grow_for(task, clip, self.prompts, self._scores.head_init)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Settle the label set of the task."""
        self._labels = softmax_labels(self._classes, self.seen, train)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        if self._scores.head == "text":
            yield from super().trainable(clip, phase)
            return
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from self.head.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = {"image": clip.encode_image(batch.images), "scale": clip.logit_scale.exp()}
        if self._scores.head == "text":
            texts = self.prompts.caption(self._labels, batch.rng("captions"))
            features["classes"] = clip.encode_text(texts)
        return features

    def logits(self, features: Mapping[str, Tensor]) -> Float[Tensor, "b c"]:
        """Return scores over the task's label set, in the order learned."""
        if self._scores.head == "text":
            return features["scale"] * features["image"] @ features["classes"].T
        rows = self.head.columns(torch.tensor(self._labels)).tolist()
        return self.head(features["image"], features["scale"])[:, rows]

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        logits, target = self.logits(features), columns(self._labels, batch.labels)
        return {"cross_entropy": functional.cross_entropy(logits, target, label_smoothing=self._smoothing)}

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        if self._scores.head == "text":
            return super().classifier(clip, labels)
        return HeadClassifier(clip.encode_image, self.head, labels, clip.logit_scale.exp())
