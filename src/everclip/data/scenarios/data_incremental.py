"""Each task brings more images of the same kind: image-text pairs, or classes that are all present from the start.

A task is what the data names in its column `task` (or `domain`), or a part of the images in the order of their column
`time`, or an equal part of them at random. scenario.by says which; auto takes the first of these that the data has.
scenario.tasks is the number of parts, scenario.order the seed of a random cut; named tasks are learned in the order
that the data gives, which scenario.order can list. Each test image belongs to the first part that ends at its time or
later, or to a part at random. This is the scenario of images with captions, where a task's test images are searched by
its captions.

    everclip train data=csv:pairs.csv method=gcl scenario.kind=data-incremental
    everclip train data=csv:pairs.csv method=gcl scenario.kind=data-incremental scenario.by=parts scenario.tasks=5

Protocol: data-incremental learning (https://arxiv.org/abs/2009.00919), with time https://arxiv.org/abs/2310.16226
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from everclip.data.images import Dataset, ImageSet
from everclip.data.scenario import Task, by_time
from everclip.data.scenarios import Scenario, ScenarioConfig
from everclip.data.scenarios.domain_incremental import domain_order, of_domains
from everclip.data.sources import TASKS
from everclip.errors import UserError


class DataIncremental(Scenario):
    """Images in parts."""

    class Config(ScenarioConfig):
        """Options of the cut."""

        by: Literal["auto", "task", "time", "parts"] = Field(
            default="auto",
            description="what makes a task: the column task (or domain), a stretch of the column time, or an equal part"
            " at random; auto: the first of these that the data has",
        )

    every_class = True
    config: Config

    @property
    def asks(self) -> str:
        return "class-incremental" if self.config.by == "parts" else TASKS

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        by = self.config.by
        if by == "auto":
            by = "task" if len(data.domain_names) > 1 else "parts" if data.times is None else "time"
        if by == "task":
            few = "names fewer than two tasks: fill its column task, or use scenario.by=parts"
            return of_domains(data, domain_order(data, self.settings.order, seed, few, "task"))
        count, classes = self._count(len(data.train)), tuple(range(len(data.class_names)))
        if by == "time":
            train, test = self._by_time(data, count)
        else:
            order = seed if self.settings.order == "seed" else self.settings.order
            rng = np.random.RandomState(order if isinstance(order, int) else 0)
            sizes = len(data.train), len(data.test)
            train, test = (np.array_split(rng.permutation(size), count) for size in sizes)
        return [
            Task(index, f"part {index + 1}", classes, _at(data.train, mine), _at(data.test, tested))
            for index, (mine, tested) in enumerate(zip(train, test, strict=True))
        ]

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        if self.config.by == "task" or (self.config.by == "auto" and domains):
            return domains, [classes] * len(domains)
        count = self._count(images)
        return [images // count] * count, [classes] * count

    def _count(self, images: int) -> int:
        """Return the number of parts. Raises UserError for sizes of tasks, and for more parts than images."""
        count = self.settings.tasks
        if not isinstance(count, int):
            raise UserError(f"scenario.tasks={count} are sizes, which count classes: use a number of parts")
        if count > images:
            raise UserError(f"scenario.tasks={count} but there are {images} images: use at most {images}")
        return count

    def _by_time(self, data: Dataset, count: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
        """Return positions of each part's training images, equally many, and of the test images of the same time."""
        if data.times is None:
            raise UserError(f"{data.name} has no times: fill a column time, or use scenario.by=parts")
        train, part = by_time(data, count)
        return train, [np.flatnonzero(part == number) for number in range(count)]


def _at(images: ImageSet, where: NDArray[np.int64]) -> ImageSet:
    """Return those images, in the order of the table."""
    return images.select(np.sort(where))
