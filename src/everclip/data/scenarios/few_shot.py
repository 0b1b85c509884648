"""A large first task with all its images, then tasks with a few images of each class.

As in few-shot class-incremental learning: the base session has scenario.base classes with all their training images,
each later session some new classes with scenario.shots images of each (N-way K-shot). All test images are used.
scenario.tasks counts the base session: on CIFAR-100 scenario.base=60 scenario.tasks=9 is its 60 + 8 x 5 classes. A list
of sizes may be given in place of both. The shots of a class are those whose ids have the smallest hashes, the same in
every run; the published lists of images of these papers are not here.

    everclip train scenario.kind=few-shot scenario.base=60 scenario.tasks=9 scenario.shots=5
    everclip train scenario.kind=few-shot 'scenario.tasks=[60, 20, 20]' scenario.shots=1

Protocol: https://arxiv.org/abs/2004.10956 (FSCIL); https://arxiv.org/abs/2104.03047 (CEC)
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from pydantic import Field

from everclip.data.images import Dataset
from everclip.data.scenario import Task, first_by_hash, task_sizes
from everclip.data.scenarios import ScenarioConfig
from everclip.data.scenarios.class_incremental import ClassIncremental
from everclip.errors import UserError

BASE = 0.6
"""Fraction of the classes in the base session, unless a number is given: 60 of CIFAR-100's and miniImageNet's 100."""


class FewShot(ClassIncremental):
    """All images of a base, then a few of each class."""

    class Config(ScenarioConfig):
        """Options of few-shot."""

        shots: int = Field(default=5, ge=1, description="training images of each class after the first task")
        base: int | None = Field(
            default=None, ge=1, description="number of classes in the first task; none: three fifths of all"
        )

    config: Config

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        base, *later = super().cut(data, seed)
        shots = dict.fromkeys(range(len(data.class_names)), self.config.shots)
        few = (replace(task, train=first_by_hash(task.train, "shots", shots)) for task in later)
        return [replace(base, name="base"), *few]

    def classes_per_task(self, classes: int) -> list[int]:
        tasks, base = self.settings.tasks, self.config.base
        if not isinstance(tasks, int):
            if base is not None:
                raise UserError("scenario.base and a list as scenario.tasks are both given: use one of them")
            return task_sizes(classes, tasks)
        if tasks == 1:
            if base not in (None, classes):
                raise UserError(
                    f"scenario.base={base}, but scenario.tasks=1 is one task of all {classes} classes: use more"
                    " tasks, or leave scenario.base out"
                )
            return [classes]
        if tasks > classes:
            return task_sizes(classes, tasks)  # says so
        base = round(BASE * classes) if base is None else base
        if classes - base < tasks - 1:
            raise UserError(f"scenario.base={base} leaves too few for {tasks - 1} more tasks: lower it")
        return [base, *task_sizes(classes - base, tasks - 1)]

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        sizes = self.classes_per_task(classes)
        few = [min(self.config.shots * size, round(images * size / classes)) for size in sizes[1:]]
        return [round(images * sizes[0] / classes), *few], list(accumulate(sizes))
