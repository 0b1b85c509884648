"""Most classes come in all three tasks, the last of them in the third alone: a stream whose tasks are not disjoint.

The second task brings no new class, so it has no test images of its own.

Protocol: made up for the tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from everclip.data.images import Dataset
from everclip.data.scenario import Task, class_order
from everclip.data.scenarios import Scenario, ScenarioConfig

KIND = str(Path(__file__))
"""The file, since errors of a package that plug-ins were loaded from are not everclip's, and this one is the tests'."""


class Mixed(Scenario):
    """Three tasks that share classes."""

    class Config(ScenarioConfig):
        """How many classes come late."""

        late: int = Field(default=2, ge=1, description="classes that the third task alone has")

    config: Config

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        order = class_order(data.class_names, "given")
        early, late = order[: -self.config.late], order[-self.config.late :]
        turn = np.arange(len(data.train)) % 3
        turn[np.isin(data.train.labels, late)] = 2
        parts = [data.train.select(np.flatnonzero(turn == task)) for task in range(3)]
        tests = [data.test.of_classes(classes) for classes in (early, [], late)]
        classes = (early, early, [*early[::-1], *late])
        return [
            Task(task, f"part {task + 1}", tuple(classes[task]), parts[task], tests[task])
            for task in range(3)
        ]
