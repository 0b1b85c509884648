"""Each task brings classes that were not there before.

The classes are put in order and cut into tasks. After each task the model is tested on all classes seen so far, without
being told which task an image is from. With scenario.tasks=10 (the default) the tasks are as even as can be, the larger
ones first; 'scenario.tasks=[50, 10, 10]' gives their sizes. scenario.order is a seed of numpy's legacy permutation (the
default 1993 is the field's), seed for one that varies with the run's seed, given for the data set's own, icarl for that
of CIFAR-100 in iCaRL, or a list of all class names.

    everclip train scenario.tasks=5
    everclip train data=imagefolder:/photos scenario.order=given
    everclip train data=imagefolder:/photos 'scenario.tasks=[50, 25, 25]'

Protocol: https://arxiv.org/abs/1611.07725
"""

from __future__ import annotations

from itertools import accumulate

from everclip.data.images import Dataset
from everclip.data.scenario import Task, learned_order, task_sizes
from everclip.data.scenarios import Scenario


class ClassIncremental(Scenario):
    """Classes in order, cut into tasks."""

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        labels = learned_order(data.class_names, self.settings.order, seed)
        tasks: list[Task] = []
        start = 0
        for index, size in enumerate(self.classes_per_task(len(labels))):
            classes = tuple(labels[start : start + size])
            start += size
            train, test = (part.of_classes(classes) for part in (data.train, data.test))
            tasks.append(Task(index, f"task {index + 1}", classes, train, test))
        return tasks

    def classes_per_task(self, classes: int) -> list[int]:
        """Return the number of classes of each task. Raises UserError where they do not fit."""
        return task_sizes(classes, self.settings.tasks)

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        tasks = self.classes_per_task(classes)
        return [round(images * size / classes) for size in tasks], list(accumulate(tasks))
