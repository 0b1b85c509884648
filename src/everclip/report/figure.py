"""Compose the page's figures from the charts of ``everclip.plots``, for wide screens, paper and phones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from everclip.plots import style
from everclip.plots.panels import Panel, draw, label_ends
from everclip.plots.text import printable, shorten, text_width
from everclip.plots.training import task_borders
from everclip.report.svg import embedded, light
from everclip.runs.read import RunData
from everclip.system import text as texts

WIDE, NARROW = 920, 360
"""Widths of drawings in px, which are points."""
_RC: dict[Any, Any] = {**style.STYLE, "text.parse_math": False}
_SMALL = 10.5
_LEFT, _HEAD, _FOOT, _GAP = 50.0, 30.0, 46.0, 20.0  # px around the plotting area of a panel
_WIDEST = 620.0  # px of a panel
_SAMPLE, _NAME, _LONGEST = 62.0, 14.5, 130.0
"""Px before a name at a line's end, its height, its largest width."""


@dataclass(frozen=True)
class Figure:
    """A chart of the page."""

    key: str  # of its file's name and ids
    title: str  # above and beneath
    caption: str
    description: str  # for screen readers
    csv: str  # the text of a CSV file with its numbers
    make: Callable[[float], Drawing]  # draws it at a width in px
    prefix: str  # of its ids; unique in the page together with the key

    def drawing(self, width: float) -> Drawing:
        """Return the chart in the page's look."""
        with rc_context(_RC):
            return self.make(width)

    @cached_property
    def wide(self) -> Markup:
        """The SVG for wide screens and paper."""
        return self._embedded(WIDE, "wide")

    @cached_property
    def narrow(self) -> Markup:
        """The SVG for phones."""
        return self._embedded(NARROW, "narrow")

    def _embedded(self, width: float, word: str) -> Markup:
        with rc_context(_RC):
            ident = f"{self.prefix}-{self.key}-{word}"
            return embedded(self.make(width), ident, self.title, self.description)

    @property
    def csv_address(self) -> str:
        """A data: address of the CSV file."""
        return address(self.csv)

    def save(self, folder: Path, name: str) -> None:
        """Write the wide chart as SVG, PDF and PNG, and its numbers as CSV; reproducible to the byte."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text(light(self.wide), encoding="utf-8")
        (folder / f"{name}.csv").write_text(self.csv, encoding="utf-8", errors="backslashreplace")
        with rc_context({**_RC, "figure.facecolor": style.PAGE}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # DejaVu Sans has no Chinese, Japanese or Korean
            drawn = self.make(WIDE)
            FigureCanvasAgg(drawn)
            for ending, about in (("pdf", {"CreationDate": None}), ("png", {})):
                drawn.savefig(folder / f"{name}.{ending}", dpi=200, metadata=about, bbox_inches="tight")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return ``rows`` as CSV, with the byte-order mark that spreadsheets need to see UTF-8."""
    return "\ufeff" + texts.csv_text(header, rows)


def address(csv: str) -> str:
    """Return a data: address of a CSV text."""
    return "data:text/csv;charset=utf-8," + quote(csv, safe=",.-:()'", errors="backslashreplace")


def csv_address(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a data: address of ``rows`` as CSV."""
    return address(csv_text(header, rows))


def canvas(width: float, height: float) -> Drawing:
    """Return an empty drawing; a px is a point."""
    return Drawing(figsize=(width / 72, height / 72), dpi=72)


def place(drawing: Drawing, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes at a place in px from the top left corner."""
    whole, high = drawing.get_size_inches() * 72
    return drawing.add_axes((left / whole, 1 - (top + height) / high, width / whole, height / high))


def fill(drawing: Drawing, corner: tuple[float, float], width: float, height: float, **look: Any) -> None:
    """Draw a rectangle at a place in px from the top left corner."""
    whole, high = drawing.get_size_inches() * 72
    at = (corner[0] / whole, 1 - (corner[1] + height) / high)
    drawing.add_artist(Rectangle(at, width / whole, height / high, transform=drawing.transFigure, **look))


def write(drawing: Drawing, x: float, y: float, text: str, **settings: Any) -> None:
    """Write text with its middle at ``y`` px from the top."""
    whole, high = drawing.get_size_inches() * 72
    drawing.text(x / whole, 1 - y / high, printable(text), va="center", **settings)


def grid(
    panels: Sequence[Panel], width: float, *, columns: int = 3, height: float = 190.0, ends: bool = False
) -> Drawing:
    """Return panels side by side with one legend.

    Args:
        columns: most panels per row of a wide drawing; a narrow one has one.
        height: px of a plotting area.
        ends: write short names at the ends of the lines of a wide drawing, in place of a legend.
    """
    across, wide = 1, width == WIDE
    if wide:
        across = 2 if len(panels) == 4 and columns == 3 else min(columns, len(panels))
        width = min(width, _WIDEST * across - _GAP)
    step = (width + _GAP) / across
    longest = max(text_width(line.name) for panel in panels for line in panel.lines)
    side = _SAMPLE + longest if ends and wide and longest <= _LONGEST else 0.0
    height = max(height, _NAME * max(len(panel.lines) for panel in panels)) if side else height
    entries = [] if side else _entries(panels, width)
    top = 8 + 20 * (1 + max(row for row, _, _ in entries)) if entries else 0.0
    row_height = _HEAD + height + _FOOT
    drawing = canvas(width, top + math.ceil(len(panels) / across) * row_height)
    handles: dict[str, Line2D] = {}
    for k, panel in enumerate(panels):
        left, y = (k % across) * step, top + (k // across) * row_height
        ax = place(drawing, left + _LEFT, y + _HEAD, step - _GAP - _LEFT - (side or 18), height)
        title = shorten(panel.title, step - _GAP)
        draw(replace(panel, title="", ylabel=""), ax)
        write(drawing, left + 4, y + 14, title, fontweight="bold")
        thin_ticks(ax)
        handles |= {str(line.get_label()).removeprefix("\u200b"): line for line in ax.get_lines()}
        if side:
            label_ends(ax)
    for row, x, name in entries:
        y = 1 - (10 + 20 * row) / (drawing.get_figheight() * 72)
        piece = Line2D([(x + dx) / width for dx in (0, 17, 34)], [y] * 3, figure=drawing)
        piece.update_from(handles[name])
        piece.set(transform=drawing.transFigure, markevery=[1], clip_on=False, clip_path=None)
        drawing.add_artist(piece)
        write(drawing, x + 40, 10 + 20 * row, shorten(name, width - 60))
    return drawing


def _entries(panels: Sequence[Panel], width: float) -> list[tuple[int, float, str]]:
    """Return (row, x, name) of each entry of the legend; none for a single line."""
    looks = {line.name: line.look for panel in panels for line in panel.lines if line.name}
    entries, row, x = [], 0, 0.0
    for name in sorted(looks, key=lambda name: (looks[name] is None, looks[name] or 0)):
        room = 40 + text_width(shorten(name, width - 60)) + 16
        if x and x + room > width:
            row, x = row + 1, 0.0
        entries.append((row, x, printable(name)))
        x += room
    return entries if len(entries) > 1 else []


def thin_ticks(ax: Axes) -> None:
    """Leave out tick labels that would overlap the one before."""
    free = -math.inf
    labels = [label.get_text() for label in ax.get_xticklabels()]
    for tick, text in zip(ax.get_xticks(), labels, strict=True):
        x, half = ax.transData.transform((tick, 0))[0], text_width(text) / 2
        if text and x - half <= free + 4:
            labels[labels.index(text)] = ""
        elif text:
            free = x + half
    if "" in labels:
        ax.set_xticks(ax.get_xticks(), labels, parse_math=False)


def stack(
    drawing: Drawing,
    run: RunData,
    panels: Sequence[Panel],
    box: tuple[float, float, float, float],
    named: bool,
) -> list[Axes]:
    """Draw panels one above the other over the steps of a run, with one axis; return their Axes.

    Args:
        box: left, top, width, and distance from one panel to the next, in px.
        named: write the tasks' names above the first panel.
    """
    left, top, width, each = box
    made: list[Axes] = []
    for k, panel in enumerate(panels):
        ax, last = place(drawing, left, top + each * k + 18, width, each - 36), k == len(panels) - 1
        draw(replace(panel, title="", xlabel=panel.xlabel if last else ""), ax)
        write(drawing, left, top + each * k + 6, panel.title, fontweight="bold")
        task_borders(run, ax, 26.0 if named and k == 0 else None)
        if not last:
            ax.tick_params(labelbottom=False)
            ax.spines["bottom"].set_visible(False)
        made.append(ax)
    return made


def colour_bar(
    drawing: Drawing,
    corner: tuple[float, float],
    width: float,
    colours: Colormap,
    ticks: Sequence[str],
    title: str,
    above: bool = False,
) -> None:
    """Draw a legend of colours ``width`` px wide, with evenly spaced ticks and its title at the left or above."""
    left, top = corner
    ax = place(drawing, left, top, width, 10)
    look: dict[str, Any] = {"cmap": colours, "aspect": "auto", "interpolation": "none"}
    ax.imshow([np.linspace(0, 1, colours.N)], extent=(0, 1, 0, 1), **look)
    ax.grid(False)
    ax.spines[:].set(visible=True, color=style.EDGE)
    ax.set_yticks([])
    ax.set_xticks(np.linspace(0, 1, len(ticks)), ticks, fontsize=_SMALL)
    where = (left, top - 8) if above else (left - 10, top + 5)
    write(drawing, *where, title, ha="left" if above else "right", color=style.DIM, fontsize=_SMALL)
