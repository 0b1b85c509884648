"""Read the runs of a chart from directories, patterns, or rows of ``everclip.load_runs``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everclip.compare.groups import Group, Memory, Setting, differing, settings
from everclip.errors import UserError, shown
from everclip.runs.find import find
from everclip.runs.read import RunData, read_run
from everclip.runs.words import listed

Place = str | os.PathLike[str]
One = Place | Mapping[str, Any] | RunData
"""A run directory, a row of ``load_runs``, or a run as ``runs.read`` gives it."""
Runs = One | Iterable[One] | Group | Setting
"""Any number of these, a data frame of ``load_runs``, or a group or setting of runs."""


def runs_of(runs: Any) -> list[RunData]:
    """Return the distinct runs in the order given. Raises UserError where there is none, or one cannot be read."""
    if isinstance(runs, Group | Setting):
        return list(runs.runs)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(runs, pandas.DataFrame):
        runs = list(runs["path"])
    many = [runs] if isinstance(runs, str | os.PathLike | Mapping | RunData) else list(runs)
    read = [one for one in many if isinstance(one, RunData)]
    places = [one for one in many if not isinstance(one, RunData)]
    found = find(one["path"] if isinstance(one, Mapping) else one for one in places)
    if found.skipped or not (read or found.runs):
        raise UserError("; ".join(found.skipped) or "no run to draw; name at least one run directory")
    return [*read, *map(read_run, found.runs)]


def setting_of(runs: Any) -> Setting:
    """Return the runs as groups of one setting. Raises UserError where they cannot be compared."""
    if isinstance(runs, Setting):
        return runs
    found = settings(runs_of(runs))
    if len(found) > 1:
        what = f"these runs differ in {', '.join(differing(found))}: their numbers cannot be compared"
        raise UserError(f"{what}; draw each kind on Axes of its own")
    return found[0]


def groups_of(runs: Any, memory: Memory = None) -> list[Group]:
    """Return the groups of one setting; with ``memory``, those of this size and those without. Raises UserError as
    ``setting_of`` does, and where none has this size."""
    if isinstance(runs, Group):
        return [runs]
    setting = setting_of(runs)
    if memory is not None and setting.memories and memory not in setting.memories:
        sizes = listed(map(repr, setting.memories))
        raise UserError(
            f"memory={shown(memory)}: no run has this many exemplars; use {sizes}, or leave it out"
        )
    return [group for group in setting.every if memory is None or group.memory in (memory, None)]


def name_in(group: Group, groups: Sequence[Group]) -> str:
    """Return the name of a group among ``groups``, with its memory size where that varies."""
    return group.series if len({other.memory for other in groups} - {None}) < 2 else group.label


def run_of(run: Any) -> RunData:
    """Return the run of a chart that shows one. Raises UserError where there are several."""
    found = runs_of(run)
    if len(found) > 1:
        raise UserError(f"this chart shows one run, and {len(found)} are given: name one")
    return found[0]


def nothing(what: str) -> UserError:
    """Return the error of a chart without data."""
    return UserError(f"{what}: there is nothing to draw; name other runs")
