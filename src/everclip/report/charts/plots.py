"""Draw line charts side by side, with one legend: a panel per data set, memory size or group of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from everclip.report.charts import style
from everclip.report.charts.canvas import WIDE, Canvas, Panel, shorten, spread, text_width

_LEFT, _HEAD, _FOOT, _GAP = 50.0, 30.0, 46.0, 20.0  # px around the plotting area of a panel
_WIDEST = 620.0  # px of a panel
_SAMPLE, _NAME, _LONGEST = (
    62.0,
    14.5,
    130.0,
)  # px: room before a name at a line's end, its height, its most width


@dataclass(frozen=True)
class Line:
    """A line, or bare markers.

    Args:
        name: what the legend calls it; lines of one name have one entry.
        look: number of its colour, dash and marker; None for a reference, which is grey.
        xs, ys: its points; it breaks where a y is None.
        spans: the interval of each point, None where there is none; empty without any.
        dots: single measurements behind the points.
        tips: hover texts of the points.
        marked: whether points have markers.
        dash: classes of a grey line.
    """

    name: str
    look: int | None
    xs: Sequence[float]
    ys: Sequence[float | None]
    spans: Sequence[tuple[float, float] | None] = ()
    dots: Sequence[tuple[float, float]] = ()
    tips: Sequence[str] = ()
    marked: bool = True
    dash: str = "dash"

    @property
    def classes(self) -> str:
        """CSS classes of its stroke."""
        return f"line sdim {self.dash}" if self.look is None else f"line {style.stroke(self.look)}"


@dataclass(frozen=True)
class Plot:
    """One panel.

    Args:
        title: above it.
        lines: from the back to the front.
        xs, ys: (low, high) of its axes.
        ticks: places and texts on the horizontal axis.
        under: what the horizontal axis is.
        suffix: after the numbers of the vertical axis.
        borders: places of vertical lines.
    """

    title: str
    lines: Sequence[Line]
    xs: tuple[float, float]
    ys: tuple[float, float]
    ticks: Sequence[tuple[float, str]]
    under: str = ""
    suffix: str = ""
    borders: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Plots:
    """Panels with shared widths, row by row.

    Args:
        columns: most panels in a row of a wide chart; a narrow one has one.
        height: px of a plotting area.
        ends: whether a wide chart has the names at the ends of the lines, in place of a legend, where they are short.
    """

    title: str
    description: str
    plots: Sequence[Plot]
    columns: int = 3
    height: float = 190.0
    ends: bool = False

    def draw(self, width: float, ident: str) -> Canvas:
        """The chart at a width."""
        columns, wide = 1, width == WIDE
        if wide:
            columns = 2 if len(self.plots) == 4 and self.columns == 3 else min(self.columns, len(self.plots))
            width = min(width, _WIDEST * columns - _GAP)
        step = (width + _GAP) / columns
        longest = max(text_width(line.name) for plot in self.plots for line in plot.lines)
        side = _SAMPLE + longest if self.ends and wide and longest <= _LONGEST else 0.0
        most = max(len(plot.lines) for plot in self.plots)
        height = max(self.height, _NAME * most) if side else self.height
        entries = [] if side else _legend(self.plots, width)
        top = 8 + 20 * (1 + max(row for row, _, _ in entries)) if entries else 0.0
        row_height = _HEAD + height + _FOOT
        rows = math.ceil(len(self.plots) / columns)
        canvas = Canvas(
            width, top + rows * row_height, ident=ident, title=self.title, description=self.description
        )
        for row, x, line in entries:
            _entry(canvas, x, 14 + 20 * row, line)
        for k, plot in enumerate(self.plots):
            left, y = (k % columns) * step, top + (k // columns) * row_height
            area = (left + _LEFT, y + _HEAD, step - _GAP - _LEFT - (side or 18), height)
            panel = _draw(canvas, plot, area)
            if side:
                _names(panel, plot.lines)
        return canvas


def _legend(plots: Sequence[Plot], width: float) -> list[tuple[int, float, Line]]:
    """(row, x, line) of each entry; none where there is one line alone."""
    lines = {line.name: line for plot in plots for line in plot.lines if line.name}
    lines = dict(sorted(lines.items(), key=lambda item: (item[1].look is None, item[1].look or 0)))
    entries, row, x = [], 0, 0.0
    for line in lines.values():
        room = 40 + text_width(shorten(line.name, width - 60)) + 16
        if x and x + room > width:
            row, x = row + 1, 0.0
        entries.append((row, x, line))
        x += room
    return entries if len(entries) > 1 else []


def _entry(canvas: Canvas, x: float, y: float, line: Line) -> None:
    canvas.line(x, y - 4, x + 34, y - 4, line.classes)
    if line.look is not None and line.marked:
        canvas.mark(line.look, x + 17, y - 4)
    canvas.text(x + 40, y, shorten(line.name, canvas.width - 60))


def _names(panel: Panel, lines: Sequence[Line]) -> None:
    """The name of each line beside its end, with a sample of it, one below the other."""
    canvas, right = panel.canvas, panel.left + panel.width
    shown = [line for line in lines if line.name and line.ys and line.ys[-1] is not None]
    heights = [panel.y(min(max(line.ys[-1] or 0.0, panel.ys[0]), panel.ys[1])) for line in shown]
    places = spread(heights, _NAME, panel.top, panel.top + panel.height)
    for line, height, y in zip(shown, heights, places, strict=True):
        end = panel.x(line.xs[-1]) + (6 if line.marked and line.look is not None else 0)
        canvas.line(end, height, right + 24, y, "grid")
        canvas.line(right + 26, y, right + 50, y, line.classes)
        if line.look is not None and line.marked:
            canvas.mark(line.look, right + 38, y)
        canvas.text(right + 55, y + 4, line.name)


def _draw(canvas: Canvas, plot: Plot, area: tuple[float, float, float, float]) -> Panel:
    panel = Panel(canvas, *area, plot.xs, plot.ys)
    left, top, width, height = area
    canvas.text(left - _LEFT + 4, top - 12, shorten(plot.title, width + _LEFT), "strong")
    panel.grid(5 if height > 150 else 3, plot.suffix)
    canvas.line(left, top + height, left + width, top + height, "axis")
    for x in plot.borders:
        canvas.line(panel.x(x), top, panel.x(x), top + height, "border")
    free = left - 20.0
    for x, text in plot.ticks:
        half = text_width(text) / 2
        if panel.x(x) - half > free + 4:
            canvas.text(panel.x(x), top + height + 17, text, "dim", "middle")
            free = panel.x(x) + half
    canvas.text(left + width / 2, top + height + 34, plot.under, "dim small", "middle")
    for line in plot.lines:
        _line(panel, line)
    return panel


def _line(panel: Panel, line: Line) -> None:
    low, high = panel.ys
    for x, y in line.dots:
        if low <= y <= high and line.look is not None:
            panel.canvas.add(
                "circle", cx=panel.x(x), cy=panel.y(y), r=2, class_=f"{style.fill(line.look)} faint"
            )
    for x, span in zip(line.xs, line.spans, strict=False):
        if span is not None:
            _whisker(panel, x, span, line)
    ys = [None if y is None else min(max(y, low), high) for y in line.ys]
    if len(ys) > 1:
        panel.path(line.xs, ys, line.classes)
    if line.look is None or not line.marked:
        return
    for k, (x, y) in enumerate(zip(line.xs, ys, strict=True)):
        if y is not None:
            panel.canvas.mark(line.look, panel.x(x), panel.y(y), line.tips[k] if line.tips else "")


def _whisker(panel: Panel, x: float, span: tuple[float, float], line: Line) -> None:
    """An interval; an end that lies outside of the panel has no bar across."""
    low, high = panel.ys
    at, ends = panel.x(x), [min(max(end, low), high) for end in span]
    stroke = style.stroke(line.look or 0).split()[0]
    panel.canvas.line(at, panel.y(ends[0]), at, panel.y(ends[1]), f"whisker {stroke}")
    for end, true in zip(ends, span, strict=True):
        if end == true:
            panel.canvas.line(at - 3, panel.y(end), at + 3, panel.y(end), f"whisker {stroke}")


def aligned(plots: Sequence[Plot]) -> list[Plot]:
    """The panels with one vertical axis for all."""
    ys = (min(plot.ys[0] for plot in plots), max(plot.ys[1] for plot in plots)) if plots else (0.0, 1.0)
    return [replace(plot, ys=ys) for plot in plots]


def around(values: Sequence[float], room: float = 3.0) -> tuple[float, float]:
    """Ends of an axis in percent: whole tens around ``values`` with some room, within 0..100."""
    low, high = min(values) - room, max(values) + room
    return max(0.0, 10.0 * math.floor(low / 10)), min(100.0, 10.0 * math.ceil(high / 10))
