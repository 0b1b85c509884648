"""Classes of very different sizes: the k-th largest has n_max r^(-k / (C - 1)) training images.

As in long-tailed class-incremental learning: of C classes the largest keeps n_max images, the smallest n_max / r, and
between them sizes fall exponentially; r is scenario.imbalance, n_max the images of the class that has fewest, so that
every class can have its share. All test images are used, so that accuracy is that on balanced data. With
scenario.tail=ordered the largest classes are learned first; shuffled, sizes are dealt to classes at random. Results
have the accuracy on many-shot, medium-shot and few-shot classes: more than scenario.many training images, fewer than
scenario.few, and those between (100 and 20 are the field's; smaller data need smaller ones).

    everclip train data=cifar100 scenario.kind=long-tailed scenario.imbalance=100
    everclip train scenario.kind=long-tailed scenario.imbalance=5 scenario.tail=ordered scenario.many=3 scenario.few=2

Protocol: https://arxiv.org/abs/2210.00266 (LT-CIL, ordered and shuffled);
https://arxiv.org/abs/1904.05160 (groups of classes)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from everclip.data.images import Dataset
from everclip.data.scenario import Task, first_by_hash, learned_order, stream_seed
from everclip.data.scenarios import ScenarioConfig
from everclip.data.scenarios.class_incremental import ClassIncremental
from everclip.errors import UserError
from everclip.seeding import generator


class LongTailed(ClassIncremental):
    """Classes in order, whose sizes fall exponentially."""

    class Config(ScenarioConfig):
        """Options of long-tailed."""

        imbalance: float = Field(
            default=100.0, ge=1, description="images of the largest class, divided by those of the smallest"
        )
        tail: Literal["shuffled", "ordered"] = Field(
            default="shuffled",
            description="sizes assigned to classes at random, or the largest classes first",
        )
        many: int = Field(default=100, ge=1, description="a class with more training images is many-shot")
        few: int = Field(default=20, ge=1, description="a class with fewer training images is few-shot")

        @model_validator(mode="after")
        def _in_order(self) -> LongTailed.Config:
            if self.few > self.many:
                raise ValueError(f"few={self.few} is above many={self.many}: use a smaller one")
            return self

    config: Config

    @property
    def frequency(self) -> tuple[int, int]:
        return self.config.many, self.config.few

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        order, ratio = self.settings.order, self.config.imbalance
        labels = learned_order(data.class_names, order, seed)
        counts = data.train.counts(len(labels))
        most = int(counts.min())
        if most / ratio < 1:
            name = data.class_names[int(counts.argmin())]
            raise UserError(
                f"scenario.imbalance={ratio:g} leaves none of the {most} images of {name}: use at most {most}"
            )
        ranks = np.arange(len(labels))
        if self.config.tail == "shuffled":
            ranks = generator(stream_seed(order, seed), "long tail").permutation(len(labels))
        pairs = zip(labels, ranks.tolist(), strict=True)
        sizes = {label: self.size(most, rank, len(labels)) for label, rank in pairs}
        return super().cut(replace(data, train=first_by_hash(data.train, "long tail", sizes)), seed)

    def size(self, most: int, rank: int, classes: int) -> int:
        """Return training images of the class of a rank, from 0, where the largest has ``most``."""
        return max(1, round(most * self.config.imbalance ** (-rank / max(1, classes - 1))))
