"""Draw a panel of lines on Axes: means with their intervals, references, names in a legend or at the lines' ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from everclip.compare.groups import Memory
from everclip.errors import UserError, shown, suggest
from everclip.plots import style
from everclip.plots.runs import nothing
from everclip.plots.text import number, printable, spread
from everclip.plots.tips import at_points

Styles = Mapping[str, Mapping[str, Any]]
"""Settings of ``Axes.plot`` by the names of lines, over their usual look."""


class How(TypedDict, total=False):
    """Options of all charts of lines.

    memory: draw the methods at this number of exemplars, and those that keep none; all by default.
    legend: draw a legend; by default where there are several lines.
    styles: settings of ``Axes.plot`` by the names of lines, such as ``{"gdro": {"color": "red", "label": "ours"}}``.
    """

    memory: Memory
    legend: bool
    styles: Styles


_NAME = 14.5
"""Points from one name at a line's end to the next."""


@dataclass(frozen=True)
class Line:
    """A line, or bare markers."""

    name: str  # in the legend; empty for none
    look: int | None  # number of its colour, dash and marker; None for a reference, which is grey
    xs: Sequence[float]  # its points, with gaps where y is None
    ys: Sequence[float | None]
    spans: Sequence[tuple[float, float] | None] = ()  # the interval of each point, if any; empty without any
    dots: Sequence[tuple[float, float]] = ()  # single measurements
    tips: Sequence[str] = ()  # hover texts of the points
    # of ``Axes.plot``, overriding those of the look
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    band: tuple[Sequence[float], Sequence[float]] | None = None  # lowest and highest values around the line
    counts: Sequence[int] = ()  # images of each point


@dataclass(frozen=True)
class Panel:
    """The content of Axes."""

    lines: Sequence[Line]  # from back to front
    xs: tuple[float, float]  # (low, high) of the axes
    ys: tuple[float, float]
    xlabel: str = ""
    ylabel: str = ""
    # places and texts on the horizontal axis; None for round numbers
    ticks: Sequence[tuple[float, str]] | None = None
    suffix: str = ""  # after the numbers of the vertical axis
    log: bool = False  # make the vertical axis logarithmic
    title: str = ""


def axes(ax: Axes | None, width: float = 7.0, height: float = 4.0) -> Axes:
    """Return ``ax``, or the Axes of a new pyplot figure of this size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot  # for notebooks, which show its figures; the page makes figures of its own

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def extent(ax: Axes) -> tuple[float, float]:
    """Return the width and height of Axes in points."""
    box = ax.get_window_extent()
    scale = 72 / ax.get_figure(root=True).get_dpi()  # pyright: ignore[reportOptionalMemberAccess]
    return box.width * scale, box.height * scale


def show(panel: Panel | None, ax: Axes | None, how: How, reason: str) -> Axes:
    """Draw a panel on ``ax`` or a new figure. Raises UserError with ``reason`` if there is no panel, and for an option
    that no chart has."""
    for option in how:
        if option not in How.__annotations__:
            raise UserError(f"charts have no option {shown(option)}{suggest(option, How.__annotations__)}")
    if panel is None:
        raise nothing(reason)
    return draw(panel, axes(ax), how.get("legend", True), how.get("styles"))


def span(limits: tuple[float, float]) -> tuple[float, float]:
    """Return the limits of an axis, with a single value in the middle."""
    low, high = limits
    return (low - 0.5, high + 0.5) if low == high else limits


def draw(panel: Panel, ax: Axes, legend: bool = False, styles: Styles | None = None) -> Axes:
    """Draw a panel on ``ax``."""
    width, height = extent(ax)
    if panel.log:
        ax.set_yscale("log")
    ax.set(xlim=span(panel.xs), ylim=span(panel.ys))
    for line in panel.lines:
        _line(ax, line, (styles or {}).get(line.name, {}))
    most = 5 if height > 150 else 3
    if panel.log:
        ax.yaxis.set_major_locator(LogLocator(numticks=most))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value) + panel.suffix))
    if panel.ticks is None:
        ax.xaxis.set_major_locator(MaxNLocator(10 if width > 400 else 5, steps=[1, 2, 5, 10], integer=True))
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.set_xticks([x for x, _ in panel.ticks], [text for _, text in panel.ticks], parse_math=False)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    if panel.title:
        ax.set_title(printable(panel.title), parse_math=False)
    if legend and len(ax.get_legend_handles_labels()[1]) > 1:
        for text in ax.legend(frameon=False).get_texts():
            text.set_parse_math(False)
    return ax


def _line(ax: Axes, line: Line, given: Mapping[str, Any]) -> None:
    look = style.look(line.look) | dict(line.settings) | dict(given)
    name = printable(line.name)
    look.setdefault("label", f"\u200b{name}" if name.startswith("_") else name or None)
    xs = np.asarray(line.xs, dtype=np.float64)
    ys = np.array([math.nan if y is None else y for y in line.ys], dtype=np.float64)
    if line.band is not None:
        ax.fill_between(xs[np.isfinite(ys)], *line.band, color=look["color"], alpha=0.18, linewidth=0)
    if line.dots:
        dots = {"color": look["color"], "markersize": 4, "markeredgewidth": 0, "alpha": 0.5}
        ax.plot(*zip(*line.dots, strict=True), "o", **dots)
    bars = {"ecolor": look["color"], "fmt": "none", "capsize": 3, "elinewidth": 1.4, "alpha": 0.6}
    for x, y, span in zip(xs, ys, line.spans, strict=False):
        if span is not None:
            ax.errorbar(x, y, yerr=[[y - span[0]], [span[1] - y]], **bars)
    (drawn,) = ax.plot(xs, ys, **look)
    if np.isfinite(ys).sum() == 1 and drawn.get_marker() == "None":
        drawn.set_marker(".")  # a line of one point would be invisible
    if line.tips:
        at_points(ax, line.xs, line.ys, line.tips)


def label_ends(
    ax: Axes, *, values: Callable[[float], str] | None = None, sample: bool = True, size: float = 12.0
) -> None:
    """Write the name of each line beside its end, at the right of ``ax``, in place of a legend.

    Args:
        values: formats a line's last value, which is written after its name.
        sample: draw a piece of the line before its name.
        size: of the names in points.
    """
    width, height = extent(ax)
    shown = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    ends = [_end(ax, line) for line in shown]
    gap = (_NAME + size - 12.0) / height
    places = spread((y for _, y, _ in ends), gap, 0.0, 1.0)
    for line, (x, y, value), place in zip(shown, ends, places, strict=True):
        left, word = (1 + 24 / width, 1 + 55 / width) if sample else (x, x + 9 / width)
        if sample:
            where = {"transform": ax.transAxes, "clip_on": False}
            ax.add_line(Line2D([x + 6 / width, left], [y, place], color=style.GRID, linewidth=1, **where))
            piece = Line2D([left + k / width for k in (2, 14, 26)], [place] * 3, **where)
            piece.update_from(line)
            piece.set(transform=ax.transAxes, clip_on=False, markevery=[1], label="_")
            ax.add_line(piece)
        name = str(line.get_label()).strip("\u200b")
        name = f"{name} {values(value)}".strip() if values else name
        look: dict[str, Any] = {"transform": ax.transAxes, "va": "center", "fontsize": size}
        if not sample:
            weight = "bold" if line.get_linestyle() != ":" else None
            look |= {"color": line.get_color(), "fontweight": weight}
        ax.text(word, place, name, parse_math=False, **look)


def _end(ax: Axes, line: Line2D) -> tuple[float, float, float]:
    """Return the last known point of a line, as fractions of the Axes, and its value."""
    xs, ys = (np.asarray(data, dtype=np.float64) for data in line.get_data(orig=False))
    last = int(np.flatnonzero(np.isfinite(ys))[-1])
    inside = xs[last], np.clip(ys[last], *ax.get_ylim())
    x, y = (ax.transData - ax.transAxes).transform(inside)
    return float(x), float(y), float(ys[last])


def around(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis in percent: whole tens around ``values`` with some room, within 0..100."""
    low, high = min(values) - 3.0, max(values) + 3.0
    return max(0.0, 10.0 * math.floor(low / 10)), min(100.0, 10.0 * math.ceil(high / 10))


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """Return different ends of a linear axis for ``values``; zero in place of a low end near it."""
    low, high = min(values), max(values)
    low = 0.0 if 0 < low < 0.5 * high else low
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def heights(lines: Sequence[Line]) -> list[float]:
    """Return the heights of lines and their dots."""
    return [y for line in lines for y in (*line.ys, *(dot for _, dot in line.dots)) if y is not None]
