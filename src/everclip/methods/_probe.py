"""Methods in two phases: represent learns the image tower, probe a linear layer on what it then gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.methods._base import Batch, Clip, Method, MethodConfig, Phase, Prompts, Task
from everclip.methods._head import Head, HeadClassifier, HeadInit, columns, first_rows, initial_rows

PROBE = "probe"
"""Name of the second phase."""


class ProbeConfig(MethodConfig):
    """Options of the linear probe."""

    probe_epochs: int = Field(default=5, ge=1, description="passes of the linear probe after each task")
    probe_lr: float = Field(default=1e-3, gt=0, description="its peak learning rate")
    probe_start: Literal["fresh", "kept"] = Field(
        default="fresh",
        description="where the rows of classes with images begin after a task: anew, or as they were",
    )
    head_init: HeadInit = initial_rows()


class Probe(Method):
    """Base of methods whose loss learns features and no classifier.

    The probe sees the images that the method may keep at hand, classes drawn alike, through the frozen tower, without
    weight decay. Its softmax runs over the classes that have images; rows of other classes stay as they are.
    """

    views: ClassVar[Literal[1, 2]] = 1
    """Augmented views of an image in the first phase."""
    represent_data: ClassVar[Literal["mixed", "new"]] = "mixed"
    """Images of the first phase."""

    def __init__(self, config: ProbeConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.head = Head()
        self.probe_data: Literal["mixed", "new"] = "mixed"
        self._labels: list[int] = []

    @abstractmethod
    def represent(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        """``encode`` of the first phase."""

    @abstractmethod
    def contrast(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``loss`` of the first phase."""

    def learners(self, clip: Clip) -> Iterator[nn.Parameter]:
        """``trainable`` of the first phase."""
        yield from (parameter for _, parameter in clip.image_parameters())

    def phases(self, task: Task) -> list[Phase]:
        rates = {"lr_head": self.options.probe_lr, "weight_decay": 0.0}
        return [
            Phase("represent", data=self.represent_data, views=self.views),
            Phase(PROBE, self.options.probe_epochs, "class_balanced", self.probe_data, train=rates),
        ]

    def grow(self, clip: Clip, task: Task) -> None:
        self.head.grow_for(task, clip, self.prompts, self.options.head_init)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Note the classes that the probe will meet, and begin their rows anew."""
        met = train.labels
        if self.probe_data == "new":
            met = met[np.isin(train.ids, task.train.ids)]
        met = set(np.unique(met).tolist())
        self._labels = [label for label in self.head.labels if label in met]
        if self.options.probe_start == "fresh":
            rows = self.head.columns(torch.tensor(self._labels)).tolist()
            with torch.no_grad():
                self.head.weight[rows] = first_rows(self._labels, clip, self.prompts, self.options.head_init)
                self.head.bias[rows] = 0

    @final
    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.head.parameters() if phase.name == PROBE else self.learners(clip)

    @final
    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name != PROBE:
            return self.represent(clip, batch, phase)
        with torch.no_grad():
            return {
                "image": clip.encode_image(clip.normalise(batch.images)),
                "scale": clip.logit_scale.exp(),
            }

    @final
    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name != PROBE:
            return self.contrast(features, batch)
        rows = self.head.columns(torch.tensor(self._labels)).tolist()
        logits = self.head(features["image"], features["scale"])[:, rows]
        return {PROBE: functional.cross_entropy(logits, columns(self._labels, batch.labels))}

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        return HeadClassifier(clip.encode_image, self.head, labels, clip.logit_scale.exp())
