"""Make tables of the page: plain cells with what to sort by, and the same rows as a CSV file."""

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
    """The content of a cell, what its column is sorted by (None: last), a hover text, a CSS class, and the interval."""

    text: str
    value: float | None = None
    tip: str = ""
    class_: str = ""
    span: Interval | None = None


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and, when it is long, searched.

    Args:
        key: of its file's name and id.
        columns: heading and kind ("text" or "number") of each; the first one names the row.
        rows: the cells.
        sorted_by: index of the column that the rows are sorted by, from small to large; None for none.
        csv: a data: address of the numbers.
    """

    key: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    csv: str
    sorted_by: int | None = None

    @property
    def long(self) -> bool:
        """Whether it has a search box."""
        return len(self.rows) > 8


def table(
    key: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], sorted_by: int | None = None
) -> Table:
    """Return a table whose CSV file has what is shown, numbers in full and intervals by their ends.

    Columns that say nothing of any row are left out; those in which a row has a value are of numbers.
    """
    rows = list(rows)
    kept = [k for k, _ in enumerate(columns) if any(row[k].text != "–" for row in rows)]
    rows = [[row[k] for k in kept] for row in rows]
    spans = [any(cell.span is not None for cell in column) for column in zip(*rows, strict=True)]
    numbers = [any(cell.value is not None for cell in column) for column in zip(*rows, strict=True)]
    heads = [
        part
        for k, span in zip(kept, spans, strict=True)
        for part in ([columns[k], f"{columns[k]}: low", f"{columns[k]}: high"] if span else [columns[k]])
    ]
    csv = csv_address(
        heads,
        [[v for cell, span in zip(row, spans, strict=True) for v in _values(cell, span)] for row in rows],
    )
    kinds = [(columns[k], "number" if number else "text") for k, number in zip(kept, numbers, strict=True)]
    return Table(key, kinds, rows, csv, sorted_by)


def _values(cell: Cell, span: bool) -> list[object]:
    first: object = cell.value if cell.value is not None else "" if cell.text == "–" else cell.text
    if not span:
        return [first]
    ends = (cell.span.low, cell.span.high) if cell.span else (None, None)
    return [first, *("" if end is None else end for end in ends)]


def words(text: object) -> Cell:
    """Return a cell of text."""
    return Cell(str(text))


def group_cells(group: Group) -> list[Cell]:
    """Return a group's method and memory size."""
    memory = group.memory
    known = memory if isinstance(memory, int) else None  # "all" comes last, as what is unknown does
    return [words(group.series), Cell("–" if memory is None else str(memory), known)]


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


def mean(span: Interval | None, kind: str) -> Cell:
    """Return a mean over seeds with half of its 95 % interval: ``71.2 ± 3.4``; ``71.2 (n=2)`` where two give none."""
    if span is None:
        return Cell("–")
    show = SHOW[kind]
    if span.low is None or span.high is None:
        number = "" if span.n == 1 else f" (n={span.n})"
        return Cell(
            show(span.mean) + number, span.mean, "" if span.n == 1 else "too few seeds for an interval"
        )
    half = (span.high - span.low) / 2
    around = share(half) if kind == "points" else show(half)
    return Cell(
        f"{show(span.mean)} ± {around}", span.mean, f"{show(span.low)} to {show(span.high)}", span=span
    )


def change(value: float | None, chance: float = 0.0) -> Cell:
    """Return a signed difference in points, without a colour where it is no larger than ``chance``."""
    shown = 0.0 if value is None else round(value, 3)  # what reads 0.0 has no colour
    class_ = "" if abs(shown) <= chance else "down" if shown < 0 else "up"
    return amount(value, "points", class_)
