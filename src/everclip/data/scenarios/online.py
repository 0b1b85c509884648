"""A stream that passes once, in small batches, with tests along the way.

As in online class-incremental learning: classes come task after task, a task's images in a random order, each is
trained on once (train.epochs is 1), in batches of 10 unless train.batch_size says otherwise. After every scenario.every
images, counted within each task, the model is tested on all classes seen so far, and any_time in results.json is the
area under this accuracy over the images that have passed. For a method each piece between two tests is a task: the
memory is updated, closed forms are solved, and a schedule of the learning rate begins and ends there.

    everclip train scenario.kind=online scenario.every=100 memory.budget=200
    everclip train scenario.kind=online scenario.tasks=5 train.batch_size=16 method=ridge

Protocol: https://arxiv.org/abs/2101.10423 (one pass, batches of 10);
https://arxiv.org/abs/2110.10031 (area under the accuracy)
"""

from __future__ import annotations

from pydantic import Field

from everclip.data.images import Dataset
from everclip.data.scenario import Task, in_pieces, stream_seed
from everclip.data.scenarios import ScenarioConfig
from everclip.data.scenarios.class_incremental import ClassIncremental


class Online(ClassIncremental):
    """Classes in order, as a stream that passes once."""

    class Config(ScenarioConfig):
        """Options of online."""

        every: int = Field(default=100, ge=1, description="images between two tests")

    config: Config

    @property
    def once(self) -> bool:
        return True

    @property
    def any_time(self) -> bool:
        return True

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        return in_pieces(super().cut(data, seed), self.config.every, stream_seed(self.settings.order, seed))

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        train, seen = [], []
        for count, known in zip(*super().sizes(images, classes, domains), strict=True):
            pieces = max(1, round(count / self.config.every))
            train += [count // pieces] * pieces
            seen += [known] * pieces
        return train, seen
