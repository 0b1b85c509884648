"""Some classes appear in one task only, the others in several: tasks without sharp borders.

As in Si-Blurry: a fraction scenario.disjoint (N) of the classes is disjoint, with all their images in one task. The
others are blurry: each has a task of its own, too, but a fraction scenario.blurry (M) of the images of these classes is
mixed and spread over all tasks at random. With scenario.stochastic (the default, Si-Blurry) the number of disjoint
classes in a task, and of mixed images that it gets, is random; without it they are equal, which is i-Blurry-N-M. A
class is tested from the first task on that has an image of it. With scenario.every the stream passes once, as in both
papers, in pieces of that many images, and is tested after each: then batches are of 10 images, and any_time in
results.json is the area under the accuracy.

    everclip train scenario.kind=blurry scenario.tasks=5
    everclip train scenario.kind=blurry scenario.disjoint=0.5 scenario.blurry=0.1 scenario.every=200
    everclip train scenario.kind=blurry scenario.stochastic=false

Protocol: https://arxiv.org/abs/2308.09303 (Si-Blurry; here every task gives the same share of its images, and has as
many blurry classes of its own, where Si-Blurry cuts their number at random, too); https://arxiv.org/abs/2110.10031
(i-Blurry, and the area under the accuracy)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from everclip.data.images import Dataset
from everclip.data.scenario import Task, first_met, in_pieces, learned_order, stream_seed, task_sizes
from everclip.data.scenarios import Scenario, ScenarioConfig
from everclip.errors import UserError
from everclip.seeding import generator


class Blurry(Scenario):
    """Disjoint classes, and classes that are mixed."""

    class Config(ScenarioConfig):
        """Options of blurry."""

        disjoint: float = Field(
            default=0.5, ge=0, le=1, description="fraction of the classes that appear in one task only"
        )
        blurry: float = Field(
            default=0.1,
            ge=0,
            le=1,
            description="fraction of the other classes' images that are dealt to all tasks",
        )
        stochastic: bool = Field(
            default=True, description="whether task sizes are random (Si-Blurry), not equal (i-Blurry)"
        )
        every: int | None = Field(
            default=None,
            ge=1,
            description="images between two tests, if the stream passes once; none: whole tasks",
        )

    config: Config

    @property
    def once(self) -> bool:
        return self.config.every is not None

    @property
    def any_time(self) -> bool:
        return self.once

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        settings, count = self.settings, self.settings.tasks
        if not isinstance(count, int):
            raise UserError("scenario.kind=blurry draws the sizes of its tasks: use a number of tasks")
        seed_of = stream_seed(settings.order, seed)
        labels = learned_order(data.class_names, settings.order, seed)
        draw = generator(seed_of, "blurry")
        home = self._homes(labels, count, draw)
        task = home[data.train.labels]
        blurry = np.isin(data.train.labels, labels[self._disjoint(len(labels)) :])
        moved, places = self._mixed(task, blurry, count, draw)
        task[moved] = places
        parts = [data.train.select(task == index) for index in range(count)]
        empty = next((index + 1 for index, part in enumerate(parts) if not len(part)), None)
        if empty is not None:
            raise UserError(
                f"scenario.blurry={self.config.blurry:g} leaves task {empty} no images: lower it, or use fewer tasks"
            )
        tasks = first_met(parts, data.test, [f"task {index + 1}" for index in range(count)])
        return tasks if self.config.every is None else in_pieces(tasks, self.config.every, seed_of)

    def _disjoint(self, classes: int) -> int:
        """Return how many classes are disjoint."""
        return round(self.config.disjoint * classes)

    def _homes(self, labels: list[int], count: int, draw: np.random.Generator) -> NDArray[np.int64]:
        """Return the task of each label, ``[c]``. Raises UserError where a task would have none."""
        task_sizes(len(labels), count)  # refuses more tasks than classes, whatever the options
        disjoint = self._disjoint(len(labels))
        mixed = len(labels) - disjoint
        if mixed < count and (self.config.stochastic or disjoint < count):
            raise UserError(f"scenario.disjoint leaves {mixed} mixed classes for {count} tasks: lower it")
        home = np.zeros(len(labels), dtype=np.int64)
        sizes = _cut(disjoint, count, draw) if self.config.stochastic else _even(disjoint, count)
        home[labels[:disjoint]] = np.repeat(np.arange(count), sizes)
        home[labels[disjoint:]] = np.repeat(np.arange(count), _even(mixed, count))
        return home

    def _mixed(
        self, task: NDArray[np.int64], blurry: NDArray[np.bool_], count: int, draw: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return images that leave their ``task``, a share of each task's ``blurry`` classes, and where they go."""
        moved = []
        for index in range(count):
            own = np.flatnonzero(blurry & (task == index))
            moved.append(draw.permutation(own)[: round(self.config.blurry * len(own))])
        every = draw.permutation(np.concatenate(moved))
        sizes = _cut(len(every), count, draw) if self.config.stochastic else _even(len(every), count)
        return every, np.repeat(np.arange(count), sizes)

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        found = super().sizes(images, classes, domains)
        if self.config.every is None:
            return found
        count = max(1, round(images / self.config.every))
        return [images // count] * count, [classes * (piece + 1) // count for piece in range(count)]


def _even(total: int, count: int) -> list[int]:
    """Return ``total`` in ``count`` parts, as even as can be."""
    return task_sizes(total, count) if total >= count else [int(part < total) for part in range(count)]


def _cut(total: int, count: int, draw: np.random.Generator) -> list[int]:
    """Return ``total`` in ``count`` parts, cut at random places."""
    cuts = np.sort(draw.integers(0, total + 1, count - 1))
    return np.diff([0, *cuts.tolist(), total]).tolist()
