"""Define what a scenario is: how a data set becomes a list of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from everclip.config import sections
from everclip.data.images import Dataset
from everclip.data.scenario import Task


class ScenarioConfig(sections.Section):
    """Base of a scenario's ``Config``: its options, which stand in ``[scenario]``; every field with a description."""


class Scenario(ABC):
    """A way to cut a data set into tasks.

    A scenario is a file of the folder ``data/scenarios``, or any module or file. The module's docstring is what
    ``everclip scenarios NAME`` shows.

    Args:
        settings: the section ``[scenario]``, with the number of tasks and the order asked for.
        config: this scenario's own options, checked.
    """

    Config: ClassVar[type[ScenarioConfig]] = ScenarioConfig
    domains: ClassVar[bool] = False
    """Whether tasks are domains: a source that has separate lists of images for domains gives those."""
    every_class: ClassVar[bool] = False
    """Whether each task has images of every class: then methods need no exemplars to know them all."""

    def __init__(self, settings: sections.Scenario, config: ScenarioConfig) -> None:
        self.settings = settings
        self.config = config

    @abstractmethod
    def cut(self, data: Dataset, seed: int) -> list[Task]:
        """The tasks, in order, with indices from 0. A function of the arguments alone.

        Args:
            seed: the run's.

        Raises:
            UserError: the data or the options do not fit.
        """

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        """Images of each task, and the classes seen with it, for an estimate without the data.

        Args:
            images, classes: of the data set.
            domains: images of each domain, where there are some.
        """
        count = self.settings.tasks if isinstance(self.settings.tasks, int) else len(self.settings.tasks)
        return [images // count] * count, [classes * (task + 1) // count for task in range(count)]
