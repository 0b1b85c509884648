"""Cut data into tasks: each file of this folder is a scenario, found by its name (``scenario.kind=NAME``)."""

from __future__ import annotations

from typing import Literal

from everclip import plugins
from everclip.config import sections
from everclip.config.fields import own_options
from everclip.data.scenarios._base import Scenario, ScenarioConfig

__all__ = ["Scenario", "ScenarioConfig", "build", "lists", "scenario_class"]


def scenario_class(kind: str) -> type[Scenario]:
    """The scenario that ``scenario.kind`` names. Raises UserError where there is none."""
    return plugins.find("data/scenarios", kind, Scenario)


def build(settings: sections.Scenario) -> Scenario:
    """The scenario that a config asks for.

    Raises:
        UserError: there is none of the kind, or an option of it is unknown or not allowed.
    """
    cls = scenario_class(settings.kind)
    return cls(settings, own_options(cls.Config, settings.options, sections.Scenario, "scenario."))


def lists(settings: sections.Scenario) -> Literal["class-incremental", "domain-incremental"]:
    """Which images a source gives that has separate lists. Raises UserError where there is no such scenario."""
    return "domain-incremental" if scenario_class(settings.kind).domains else "class-incremental"
