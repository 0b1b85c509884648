"""Cut data into tasks: each file of this folder is a scenario, found by its name (``scenario.kind=NAME``)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from everclip import plugins
from everclip.config import sections
from everclip.config.fields import own_options
from everclip.data.images import Dataset, ImageSet
from everclip.data.scenario import Task
from everclip.data.scenarios._base import Scenario, ScenarioConfig
from everclip.errors import UserError, shown

__all__ = ["Scenario", "ScenarioConfig", "build", "cut", "lists", "scenario_class"]


def scenario_class(kind: str) -> type[Scenario]:
    """Return the scenario that ``scenario.kind`` names. Raises UserError where there is none."""
    return plugins.find("data/scenarios", kind, Scenario)


def build(settings: sections.Scenario) -> Scenario:
    """Return the scenario that a config asks for. Raises UserError for an unknown kind, option or value."""
    cls = scenario_class(settings.kind)
    return cls(settings, own_options(cls.Config, settings.options, sections.Scenario, "scenario."))


def lists(settings: sections.Scenario) -> Literal["class-incremental", "domain-incremental"]:
    """Return which images a source with separate lists is to give. Raises UserError for an unknown scenario."""
    return "domain-incremental" if scenario_class(settings.kind).domains else "class-incremental"


def cut(scenario: Scenario, data: Dataset, seed: int) -> list[Task]:
    """Return the tasks that a scenario cuts. Raises UserError where a plug-in's are not what ``Task`` says."""
    if data.captioned and not scenario.every_class:
        raise UserError(f"{data.name} has captions and no classes: use scenario.kind=data-incremental")
    found = scenario.cut(data, seed)
    where = plugins.returned(scenario, "cut")
    if not isinstance(found, list | tuple) or not found:
        raise UserError(f"{where} {shown(repr(found))}: return a list of tasks, at least one")
    known: set[int] = set()
    tested: set[int] = set()
    for number, task in enumerate(found):
        if not isinstance(task, Task) or not all(isinstance(x, ImageSet) for x in (task.train, task.test)):
            raise UserError(f"{where} {shown(repr(task))}: return Task objects with two ImageSets")
        if task.index != number or not isinstance(task.name, str):
            raise UserError(f"{where} Task({task.index!r}, {task.name!r}): give index {number}, a text")
        known |= set(task.classes)
        if not set(np.unique(task.train.labels).tolist()) <= set(task.classes):
            raise UserError(f"{where} images of other classes in {task.name}: name them in Task.classes")
        if not set(np.unique(task.test.labels).tolist()) <= known:
            raise UserError(f"{where} test images of {task.name} not learned yet: give them to a later task")
        ids = set(task.test.ids.tolist())
        if ids & tested:
            raise UserError(f"{where} test images of an earlier task in {task.name}: give each to one task")
        tested |= ids
    every = np.array(sorted(tested), dtype=np.int64)
    for task in found:
        both = task.train.select(np.isin(task.train.ids, every))
        if len(both):
            key = both.store.keys[int(both.rows[0])]
            raise UserError(f"{where} {shown(key)} to learn in {task.name} and as a test image: use it once")
    return list(found)
