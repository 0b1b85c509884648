"""Collect, read and sort the runs of a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from everclip.compare.groups import Group, Setting, settings
from everclip.errors import UserError
from everclip.runs.find import State, counted, find, not_begun, state
from everclip.runs.read import RunData, read_run

_NUMBERS = (
    *("last", "average", "forgetting", "backward_transfer", "forward_transfer"),
    *("seconds", "memory_bytes", "state_bytes", "kept_bytes"),
)
"""Keys of results.json in the JSON of groups."""


@dataclass(frozen=True, eq=False)
class Report:
    """The content of a page."""

    runs: Sequence[RunData]  # in the order given; none where a sweep has not begun
    skipped: Sequence[str]  # a line per path that is left out
    not_begun: Sequence[tuple[str, State]]  # name and state of a sweep's runs without a directory

    @cached_property
    def settings(self) -> list[Setting]:
        """The runs in comparable groups."""
        return settings(self.runs)

    @cached_property
    def states(self) -> dict[RunData, State]:
        """The state of each run."""
        return {run: state(run) for run in self.runs}

    @property
    def named_states(self) -> list[tuple[str, State]]:
        """The name and state of every run, those that have not begun last."""
        return [*((run.name, self.states[run]) for run in self.runs), *self.not_begun]

    @property
    def status(self) -> str:
        """The numbers of finished and unfinished runs in words."""
        return counted(state for _, state in self.named_states)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of the page; accuracies are fractions in 0..1, an interval is of 95 %."""
        return {
            "status": self.status,
            "runs": [
                {
                    "path": str(run.path),
                    "state": self.states[run].kind,
                    "about": self.states[run].words,
                    "accuracy_after_stage": run.accuracy,
                }
                for run in self.runs
            ],
            "not_begun": [
                {"run": name, "state": kind, "about": words} for name, (kind, words) in self.not_begun
            ],
            "left_out": list(self.skipped),
            "settings": [_setting(setting) for setting in self.settings],
        }


def collect(paths: Iterable[str | os.PathLike[str]]) -> Report:
    """Read the runs of run directories, folders and patterns. Raises UserError where none can be read."""
    found = find(paths)
    read: list[RunData] = []
    skipped = list(found.skipped)
    for path in found.runs:
        try:
            read.append(read_run(path))
        except UserError as error:
            skipped.append(str(error))
    waiting = not_begun(found.sweeps, found.runs)
    if not read and not waiting:
        raise UserError("; ".join(skipped) or "no run to report: give at least one run directory")
    return Report(read, skipped, waiting)


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "facts": setting.facts,
        "zero_shot": setting.zero_shot,
        "groups": [_group(group) for group in setting.every],
    }


def _group(group: Group) -> dict[str, Any]:
    spans = {key: group.interval(key) for key in _NUMBERS}
    return {
        "method": group.method,
        "variant": group.variant,
        "memory": group.memory,
        "runs": [str(run.path) for run in group.runs],
        "seeds": [run.value("seed") for run in group.finished],
        **{key: None if span is None else span._asdict() for key, span in spans.items()},
    }
