"""Images in the order of their time: the earliest are learned first, and each period has its own test images.

The training images are put in order of the column time (also date or timestamp) of a csv: list or an hf: data set, as
numbers or as dates such as 2024-05-31, and cut into scenario.tasks periods of equally many images. A test image belongs
to the period of its time, or to the first later one that has learned its class; it is tested from then on, so that the
accuracy matrix has a column for each period. Classes come, return and go as they do in the list. any_time in
results.json is the area under the accuracy over the images that have passed.

    everclip train data=csv:list.csv scenario.kind=time scenario.tasks=4

Protocol: https://arxiv.org/abs/2201.06289 (CLEAR: buckets of time, a test part of each)
"""

from __future__ import annotations

import numpy as np

from everclip.data.images import Dataset
from everclip.data.scenario import Task, by_time
from everclip.data.scenarios import Scenario
from everclip.errors import UserError


class Time(Scenario):
    """Periods of time."""

    times = True

    @property
    def any_time(self) -> bool:
        return True

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        count = self.settings.tasks
        if data.times is None:
            raise UserError(f"{data.name} has no times: write them into a column time (csv: and hf: data)")
        if not isinstance(count, int):
            raise UserError("scenario.kind=time cuts equal periods: use a number as scenario.tasks")
        if count > len(data.train):
            raise UserError(f"scenario.tasks={count} for {len(data.train)} training images: use fewer")
        positions, period = by_time(data, count)
        parts = [data.train.select(part) for part in positions]
        tasks: list[Task] = []
        known: dict[int, int] = {}
        for index, part in enumerate(parts):
            for label in np.unique(part.labels).tolist():
                known.setdefault(label, index)
        learned = np.array([known.get(label, count) for label in range(len(data.class_names))])
        place = np.maximum(period, learned[data.test.labels])
        for index, part in enumerate(parts):
            classes = tuple(np.unique(part.labels).tolist())
            tasks.append(Task(index, f"period {index + 1}", classes, part, data.test.select(place == index)))
        if not len(tasks[0].test):
            raise UserError("the first period has no test images of its classes: use fewer scenario.tasks")
        return tasks
