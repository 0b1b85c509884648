"""Show what was tuned: each search's grid with scores, the best value and the number of trials (``tuned_on``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from everclip.compare.groups import Group, Setting
from everclip.report.tables import Cell, Table, group_cells, table, words
from everclip.runs.read import RunData
from everclip.runs.words import plain
from everclip.system.text import number_in

_COLUMNS = ("trials", "key", "grid: score in %", "chosen", "at an edge")
_KEY = re.compile(r"([\w.]+) (.+)")
_VALUE = re.compile(r"(.+?): (-|\d\.\d+)(?:, |$)")
_TRIALS = re.compile(r", (\d+) of (\d+) trials")


class Searched(NamedTuple):
    """One search: key -> value -> score, and its trials in words, where they were counted."""

    tried: dict[str, dict[str, float | None]]
    trials: str


def searched(text: str | None) -> Searched | None:
    """Read what ``tuned_on`` of results.json tells; None where it is another text."""
    head, *parts = (text or "").split("; ")
    tried: dict[str, dict[str, float | None]] = {}
    for part in parts:
        key = _KEY.fullmatch(part)
        scores = _VALUE.findall(key[2]) if key else []
        if key is None or not scores:
            return None
        tried[key[1]] = {value: None if score == "-" else float(score) for value, score in scores}
    counted = _TRIALS.search(head)
    return Searched(tried, f"{counted[1]} of {counted[2]}" if counted else "") if tried else None


def tuning_table(settings: Iterable[Setting]) -> Table | None:
    """Return a row for each key of each search; None where nothing was tuned."""
    rows: list[list[Cell]] = []
    for setting in settings:
        for group in setting.every:
            for run in _first(group):
                rows += _rows(run, [words(setting.name), *group_cells(group)])
    return table("tuning", ["data", "method", "memory", *_COLUMNS], rows) if rows else None


def run_table(run: RunData, prefix: str) -> Table | None:
    """Return the same for one run."""
    rows = _rows(run, [])
    return table(f"{prefix}-tuning", _COLUMNS, rows) if rows else None


def _first(group: Group) -> list[RunData]:
    """Return a run of each search that runs of the group are from; seeds mostly share one."""
    known: dict[str, RunData] = {}
    for run in group.runs:
        known.setdefault(str(run.value("tuned_on")), run)
    return list(known.values())


def _rows(run: RunData, name: list[Cell]) -> list[list[Cell]]:
    found = searched(run.value("tuned_on"))
    config = run.config
    rows: list[list[Cell]] = []
    for key, scores in found.tried.items() if found else ():
        grid = [f"{value}: {'not finite' if s is None else f'{100 * s:.1f}'}" for value, s in scores.items()]
        chosen = next((value for value in scores if _same(value, config.get(key))), None)
        edge = chosen is not None and len(scores) > 1 and chosen in (next(iter(scores)), [*scores][-1])
        marked = "yes" if edge and number_in(chosen or "") not in (None, 0.0) else ""
        shown = [words(found.trials if found and found.trials else "–"), words(key), words(", ".join(grid))]
        rows.append([*name, *shown, words(chosen or plain(config.get(key))), words(marked)])
    return rows


def _same(word: str, value: object) -> bool:
    """Return whether a word of the command line is a value of config.toml."""
    number = number_in(word)
    if number is not None and isinstance(value, int | float) and not isinstance(value, bool):
        return abs(number - value) <= 1e-9 * abs(number)
    return word == plain(value)
