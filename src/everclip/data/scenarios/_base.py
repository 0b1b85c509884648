"""Define what a scenario is: how a data set becomes a list of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from everclip.config import Config, sections
from everclip.data.images import Dataset
from everclip.data.scenario import Task

ONLINE_BATCH = 10
"""Images of a batch in a stream that passes once, unless the user gave a number."""


class ScenarioConfig(sections.Section):
    """Base of a scenario's ``Config``: options in ``[scenario]``, every field with a description."""


def once(config: Config) -> str:
    """Return why a resolved config passes over an image more than once, as a message; empty where it does not."""
    kind, train = config.scenario.kind, config.train
    if train.steps is not None:
        return f"scenario.kind={kind} passes over its images once: leave train.steps out"
    if train.epochs != 1:
        return f"scenario.kind={kind} passes over its images once: leave train.epochs out, or use 1"
    for name, value in config.method.options.items():
        if name.endswith("epochs") and isinstance(value, int) and value > 1:
            return (
                f"scenario.kind={kind} passes over its images once, and method.{name}={value} does not: use 1"
            )
    return ""


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
    times: ClassVar[bool] = False
    """Whether images are ordered by their time, which a source then has to give (``Dataset.times``)."""

    def __init__(self, settings: sections.Scenario, config: ScenarioConfig) -> None:
        self.settings = settings
        self.config = config

    @abstractmethod
    def cut(self, data: Dataset, seed: int) -> list[Task]:
        """Return the tasks, in order, with indices from 0. A function of the arguments alone.

        Args:
            seed: the run's.

        Raises:
            UserError: the data or the options do not fit.
        """

    @property
    def asks(self) -> str:
        """What a source is asked for, as the ``kind`` of ``Source.load``."""
        return "time" if self.times else "domain-incremental" if self.domains else "class-incremental"

    @property
    def once(self) -> bool:
        """Whether each image may be trained on only once, as in a stream that passes."""
        return False

    @property
    def recommends(self) -> dict[str, Any]:
        """Values of ``[train]`` in this scenario where the user gave none, whatever the method recommends."""
        return {"epochs": 1, "batch_size": ONLINE_BATCH} if self.once else {}

    @property
    def any_time(self) -> bool:
        """Whether the accuracy all along the stream is a result, as the area under its curve."""
        return False

    @property
    def task_id(self) -> Literal["known", "unknown"] | None:
        """Whether a test image comes with its task. None: images are classified among the classes learned so far. Else
        every task is tested after each, learned or not: among its own classes ("known"), or among those of all tasks
        ("unknown")."""
        return None

    @property
    def frequency(self) -> tuple[int, int] | None:
        """Training images above which a class is many-shot, and below which it is few-shot, where the accuracy of these
        groups of classes is a result."""
        return None

    def lacking(self, config: Config, one_task: bool, text: bool) -> str:
        """Return a one-line message on what has no meaning in this scenario; empty if there is nothing.

        Args:
            config: resolved.
            one_task: whether the method learns all tasks at once.
            text: whether there are class embeddings.
        """
        return once(config) if self.once else ""

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        """Return the numbers of images of each task, and of classes seen with it, for an estimate without the data.

        Args:
            images, classes: of the data set.
            domains: images of each domain, where there are some.
        """
        count = self.settings.tasks if isinstance(self.settings.tasks, int) else len(self.settings.tasks)
        return [images // count] * count, [classes * (task + 1) // count for task in range(count)]
