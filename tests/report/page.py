"""The report page, parsed."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from urllib.parse import unquote

PARTS = (
    "memory",
    "verdict",
    "stages",
    "matrix",
    "weights",
    "classes",
    "retention",
    "cost",
    "training",
    "provenance",
)
"""Names of the sections of a page of many runs."""
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """The parsed page: elements as (tag, attributes) and the visible text; fails on unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.stack: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.words.append(data)
            if {"td", "th"} & set(self.stack):
                self.rows[-1][-1] += data

    def tables(self) -> dict[str, str]:
        """Two-column rows: label to value."""
        return {row[0]: row[1] for row in self.rows if len(row) == 2}

    def csv(self, ending: str) -> list[list[str]]:
        """The rows of the downloadable CSV file whose name ends so, less the quote before what would be computed."""
        found = [
            a["href"] for tag, a in self.elements if tag == "a" and (a.get("download") or "").endswith(ending)
        ]
        assert len(found) == 1
        assert found[0] is not None
        text = unquote(found[0].removeprefix("data:text/csv;charset=utf-8,"))
        rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
        assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)
        return [[cell[1:] if cell.startswith("'=") else cell for cell in row] for row in rows]
