"""Make the table of searches: each grid with scores, the best value and the number of trials (``tuned_on``)."""

from __future__ import annotations

from collections.abc import Iterable

from everclip.compare.groups import Group, Setting
from everclip.report.tables import Cell, Table, group_cells, table, words
from everclip.runs.read import RunData
from everclip.runs.tuned import meant, searched
from everclip.runs.words import plain

_COLUMNS = ("trials", "key", "grid: score in %", "chosen", "at an edge")


def tuning_table(settings: Iterable[Setting]) -> Table | None:
    """Return a row per key of each search; None where nothing was tuned."""
    rows: list[list[Cell]] = []
    for setting in settings:
        for group in setting.every:
            for run in _first(group):
                rows += _rows(run, [words(setting.name), *group_cells(group)])
    return table("tuning", ["data", "method", "memory", *_COLUMNS], rows) if rows else None


def run_table(run: RunData, prefix: str) -> Table | None:
    """Return the rows of one run; None where nothing was tuned."""
    rows = _rows(run, [])
    return table(f"{prefix}-tuning", _COLUMNS, rows) if rows else None


def _first(group: Group) -> list[RunData]:
    """Return the first run of each search of the group; seeds mostly share one."""
    known = {str(run.value("tuned_on")): run for run in reversed(group.runs)}
    return [run for run in group.runs if run in known.values()]


def _rows(run: RunData, name: list[Cell]) -> list[list[Cell]]:
    found = searched(run.value("tuned_on"))
    if found is None:
        return []
    rows: list[list[Cell]] = []
    for key, scores in found.tried.items():
        grid = [f"{value}: {'not finite' if s is None else f'{100 * s:.1f}'}" for value, s in scores.items()]
        own = run.config.get(key)
        best = meant(scores, own) or plain(own)
        edge = ("yes" if key in found.edges else "") if len(scores) > 1 else "no trial left"
        shown = (found.trials or "–", key, ", ".join(grid), best, edge)
        rows.append([*name, *map(words, shown)])
    return rows
