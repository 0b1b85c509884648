"""Print results: plain columns for people, JSON for programs."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from everclip.system.text import json_text, printable


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    print(json_text(value))


def print_columns(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> None:
    """Print rows as aligned columns, printable, the last wrapped to the terminal's width (120 without a terminal)."""
    table = [*([head] if head else []), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(20, shutil.get_terminal_size((120, 24)).columns - indent)
    for row in table:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        first, *more = textwrap.wrap(row[-1], room, break_long_words=False) or [""]
        print_lines([(start + first).rstrip(), *(" " * indent + line for line in more)])


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with borders, printable, the first column to the left and the others, numbers, to the right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(printable(title)), title_justify="left")
    for place, name in enumerate(head):
        table.add_column(escape(name), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    Console().print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, with escapes in place of what a terminal would obey."""
    for line in lines:
        print(printable(line))


def summary(docstring: str) -> str:
    """Return the first paragraph of a docstring as one line, with single backquotes and without its full stop."""
    return " ".join(docstring.strip().split("\n\n", 1)[0].split()).rstrip(".").replace("``", "`")
