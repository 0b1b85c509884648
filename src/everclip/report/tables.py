"""Make tables of the page: plain cells with sort keys, and the same rows as a CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from everclip.compare.groups import Group
from everclip.metrics.stats import Interval
from everclip.report.figure import csv_address
from everclip.runs.predictions import Confusion
from everclip.runs.read import RunData
from everclip.runs.words import SHOW, share


class Cell(NamedTuple):
    """A cell's text, sort key (None: last), hover text, CSS class and interval."""

    text: str
    value: float | None = None
    tip: str = ""
    class_: str = ""
    span: Interval | None = None


NOTHING = Cell("–")


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and, if it is long, searched."""

    key: str  # of its file's name and id
    # heading and kind ("text" or "number") of each; the first one names the row
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    csv: str  # a data: address of the numbers
    sorted_by: int | None = None  # index of the column that the rows are sorted by, ascending, if any

    @property
    def long(self) -> bool:
        """Whether it has a search box."""
        return len(self.rows) > 8


def table(
    key: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], sorted_by: int | None = None
) -> Table:
    """Return a table and its CSV file, which has numbers in full and the ends of intervals.

    Columns without content are left out; a column with a value in any row is one of numbers.
    """
    rows = list(rows)
    filled = [k for k, _ in enumerate(columns) if any(row[k].text != "–" for row in rows)]
    rows = [[row[k] for k in filled] for row in rows]
    kinds: list[tuple[str, str]] = []
    file: list[list[object]] = []  # a list per column, with its heading
    for k, cells in zip(filled, zip(*rows, strict=True), strict=False):
        name = columns[k]
        kinds.append((name, "text" if all(cell.value is None for cell in cells) else "number"))
        file.append(
            [name, *(("" if c.text == "–" else c.text) if c.value is None else c.value for c in cells)]
        )
        if any(cell.span for cell in cells):
            file.append([f"{name}: low", *(cell.span.low if cell.span else None for cell in cells)])
            file.append([f"{name}: high", *(cell.span.high if cell.span else None for cell in cells)])
    header, *lines = zip(*file, strict=True) if file else [()]
    csv = csv_address([str(name) for name in header], lines)
    place = filled.index(sorted_by) if sorted_by in filled else None
    return Table(key, kinds, rows, csv, place)


def words(text: object) -> Cell:
    """Return a cell of text."""
    return Cell(str(text))


def group_cells(group: Group) -> list[Cell]:
    """Return a group's method and memory size."""
    memory = group.memory
    known = memory if isinstance(memory, int) else None  # "all" comes last, as do unknown ones
    return [words(group.series), NOTHING if memory is None else Cell(str(memory), known)]


def confusion_cells(run: RunData, pair: Confusion) -> list[Cell]:
    """Return two classes with their tasks, and how often the first was taken for the second."""
    tasks = [run.class_task.get(name, 0) + 1 for name in (pair.true, pair.taken)]
    true, taken = ([words(name), Cell(str(t), t)] for name, t in zip(pair[:2], tasks, strict=True))
    return [*true, *taken, Cell(f"{pair.images} of {pair.of}", pair.images / pair.of)]


CONFUSION = ("class", "its task", "taken for", "task of that", "test images")
"""The columns of ``confusion_cells``."""


def amount(value: float | None, kind: str, class_: str = "") -> Cell:
    """Return a cell of a number; ``kind`` is a key of ``words.SHOW``."""
    return Cell(SHOW[kind](value), value, "", class_)


def share_cell(value: float | None, tip: str = "", class_: str = "") -> Cell:
    """Return a cell of a fraction in whole percent."""
    return NOTHING if value is None else Cell(f"{100 * value:.0f}", round(value, 4), tip, class_)


def mean(span: Interval | None, kind: str) -> Cell:
    """Return a mean over seeds with half of its 95 % interval: ``71.2 ± 3.4``; without an interval ``71.2 (n=2)``."""
    if span is None:
        return NOTHING
    show = SHOW[kind]
    text = show(span.mean)
    if span.n == 1:
        return Cell(text, span.mean)
    if span.low is None or span.high is None:
        return Cell(f"{text} (n={span.n})", span.mean, "too few seeds for an interval")
    half = (span.high - span.low) / 2
    around = share(half) if kind == "points" else show(half)
    tip = f"95 % interval over {span.n} seeds: {show(span.low)} to {show(span.high)}"
    return Cell(f"{text} ± {around}", span.mean, tip, span=span)


def change(value: float | None, chance: float = 0.0) -> Cell:
    """Return a signed difference in points, coloured where it is larger than ``chance``."""
    shown = 0.0 if value is None else round(value, 3)  # 0.0 has no colour
    class_ = "" if abs(shown) <= chance else "down" if shown < 0 else "up"
    return amount(value, "points", class_)
