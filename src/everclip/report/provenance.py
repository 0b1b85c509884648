"""Document the origin of the numbers: the runs, how their configs differ, and how to repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from everclip.compare.cells import known
from everclip.compare.groups import Group, Setting
from everclip.config.values import dotted
from everclip.report.tables import Cell, Table, amount, table, words
from everclip.runs.find import State
from everclip.runs.read import RunData
from everclip.runs.words import fact, plain
from everclip.system import reading, trust
from everclip.system.text import shortened


def command(run: RunData) -> str:
    """Return the command that repeats the run, in a new folder where the config names one; its modules are trusted."""
    parts = ["everclip", "train", str(run.path / "config.toml")]
    if run.config.get("out"):
        parts.append(f"out={run.path.parent / (run.name + '-again')}")
    if trust.in_config(reading.parse_toml(run.config_text)):
        parts += [trust.OPTION, str(run.path)]
    return shlex.join(parts)


def environment(run: RunData) -> dict[str, str]:
    """Return the versions and the machine of a run as texts."""
    told = dotted(run.environment)
    return {key: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in told.items()}


@dataclass(frozen=True)
class Shared:
    """Keys and values that all runs share, and a table of the others with their runs."""

    alike: Sequence[tuple[str, str]]
    apart: Table | None


def configs(settings: Sequence[Setting]) -> Shared:
    """Return the configs of all runs; options of a method are compared among its runs alone."""
    return _shared("configs", settings, _options)


def environments(settings: Sequence[Setting]) -> Shared:
    """Return the versions and machines of all runs."""
    return _shared("environments", settings, environment)


def _options(run: RunData) -> dict[str, str]:
    named = ("seed", "out", "method", "memory.budget", "memory.per_class")  # in the names of runs and groups
    options: dict[str, str] = {}
    for key, value in run.config.items():
        if key not in named:
            options[f"{key} ({run.value('method')})" if key.startswith("method.") else key] = plain(value)
    return options


def _every(settings: Sequence[Setting]) -> list[tuple[Setting, Group, RunData]]:
    return [(setting, group, run) for setting in settings for group in setting.every for run in group.runs]


def _shared(
    key: str, settings: Sequence[Setting], values_of: Callable[[RunData], Mapping[str, str]]
) -> Shared:
    whose: dict[str, dict[str, list[tuple[Group, RunData]]]] = {}
    for _, group, run in _every(settings):
        for name, value in values_of(run).items():
            whose.setdefault(name, {}).setdefault(value, []).append((group, run))
    alike = [(name, next(iter(values))) for name, values in whose.items() if len(values) == 1]
    rows: list[list[Cell]] = []
    for name, values in whose.items():
        if len(values) > 1:
            rows += [[words(name), words(value), words(_those(runs))] for value, runs in values.items()]
    return Shared(alike, table(key, ["key", "value", "runs"], rows) if rows else None)


def _those(owners: Sequence[tuple[Group, RunData]]) -> str:
    """Return runs in few words: whole groups by their label, the others by name."""
    held = {run for _, run in owners}
    parts: list[str] = []
    for group in dict.fromkeys(group for group, _ in owners):
        if held.issuperset(group.runs):
            parts.append(group.label)
        else:
            parts += [run.name for run in group.runs if run in held]
    return "; ".join(dict.fromkeys(parts))


def run_table(settings: Sequence[Setting], states: Mapping[RunData, State]) -> Table:
    """Return every run by name, with its state and numbers."""
    rows: list[list[Cell]] = []
    for setting, group, run in _every(settings):
        seed, done = run.value("seed"), run.accuracy
        state, finished = states[run].words, str(run.results.get("finished", "–"))
        if run in group.repeated:
            state = f"repeats {next(r.name for r in group.finished if r.value('seed') == seed)}: left out"
        rows.append(
            [
                words(run.name),
                words(setting.name if len(settings) > 1 else "–"),
                words(group.series),
                words("–" if group.memory is None else group.memory),
                Cell(str(seed), seed if isinstance(seed, int) else None),
                words(state),
                amount(done[-1] if done else None, "share"),
                amount(known(run, "average"), "share"),
                Cell(finished[:16].replace("T", " "), class_="nowrap"),
            ]
        )
    heads = ["run", "setting", "method", "memory", "seed", "state", "accuracy, %", "average, %", "finished"]
    return table("runs", heads, rows)


def setting_table(settings: Sequence[Setting]) -> Table | None:
    """Return the facts of settings side by side; None for one setting."""
    if len(settings) < 2:
        return None
    rows: list[list[Cell]] = []
    for key in dict.fromkeys(key for setting in settings for key in setting.facts):
        values = (shortened(fact(key, setting.facts.get(key)), 60) for setting in settings)
        rows.append([words(key.replace("_", " ")), *map(words, values)])
    return table("settings", ["fact", *(setting.name for setting in settings)], rows)
