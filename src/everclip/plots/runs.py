"""Take what a chart is asked to draw: run directories, patterns, or rows of ``everclip.load_runs``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everclip.compare.groups import Group, Memory, Setting, differing, settings
from everclip.errors import UserError
from everclip.runs.find import find
from everclip.runs.read import RunData, read_run

Place = str | os.PathLike[str]
One = Place | Mapping[str, Any] | RunData
"""A run directory, a row of ``load_runs``, or a run as ``runs.read`` gives it."""
Runs = One | Iterable[One] | Group | Setting
"""Any number of these; a data frame of ``load_runs``; or runs that were sorted before."""


def runs_of(runs: Any) -> list[RunData]:
    """Read the runs, each once, in the order given.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    if isinstance(runs, Group | Setting):
        return list(runs.runs)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(runs, pandas.DataFrame):
        runs = list(runs["path"])
    many = [runs] if isinstance(runs, str | os.PathLike | Mapping | RunData) else list(runs)
    read = [one for one in many if isinstance(one, RunData)]
    found = find(
        one["path"] if isinstance(one, Mapping) else one for one in many if not isinstance(one, RunData)
    )
    if found.skipped or not (read or found.runs):
        raise UserError("; ".join(found.skipped) or "no run to draw; name at least one run directory")
    return [*read, *map(read_run, found.runs)]


def setting_of(runs: Any) -> Setting:
    """Return the runs sorted into groups of one setting.

    Raises:
        UserError: their numbers cannot be compared.
    """
    if isinstance(runs, Setting):
        return runs
    found = settings(runs_of(runs))
    if len(found) > 1:
        raise UserError(
            f"these runs differ in {', '.join(differing(found))}: their numbers cannot be compared; draw each kind on"
            " Axes of its own"
        )
    return found[0]


def groups_of(runs: Any, memory: Memory = None) -> list[Group]:
    """Return the groups of one setting, in the order of methods; at a memory size those of it, and those that keep
    nothing.

    Raises:
        UserError: the runs cannot be compared.
    """
    if isinstance(runs, Group):
        return [runs]
    return [group for group in setting_of(runs).every if memory is None or group.memory in (memory, None)]


def name_in(group: Group, groups: Sequence[Group]) -> str:
    """Return what a group is called among ``groups``: with its memory size, where that differs."""
    return group.series if len({other.memory for other in groups} - {None}) < 2 else group.label


def run_of(run: Any) -> RunData:
    """Return the one run that is asked for.

    Raises:
        UserError: there are several.
    """
    found = runs_of(run)
    if len(found) > 1:
        raise UserError(f"this chart shows one run, and {len(found)} are given: name one")
    return found[0]


def nothing(what: str) -> UserError:
    """Return the error of a chart that has nothing to draw."""
    return UserError(f"{what}: there is nothing to draw; name other runs")
