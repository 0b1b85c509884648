"""A small canvas for hand-written SVG.

Charts are drawn with CSS classes instead of fixed colours, so the page turns them dark, light or printable
without a second copy; ``FIGURE_CSS`` carries the light colours as fallbacks, which a downloaded SVG shows.
"""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from everclip.report.read import RunData

WIDE, NARROW = 920, 360  # px: every chart is drawn for a desk or paper, and for a phone
ORANGE, BLUE = (
    (217, 95, 2),
    (24, 116, 205),
)  # more and less than a neutral
FONT = 12.0  # px, of everything that is not a headline

FIGURE_CSS = """
svg.fig { font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
svg.fig text { fill: var(--ink, #1c2126); }
svg.fig text.dim { fill: var(--dim, #5b6570); }
svg.fig text.strong { font-weight: 650; }
svg.fig text.halo { paint-order: stroke; stroke: var(--page, #fff); stroke-width: 5px; }
svg.fig text.small { font-size: 10.5px; }
svg.fig text.onlight { fill: #111; }
svg.fig text.ondark { fill: #fff; }
svg.fig text.ahead { font-style: italic; }
svg.fig text.c1 { fill: var(--c1, #0b62a4); font-weight: 650; }
svg.fig text.c2 { fill: var(--c2, #b84a00); font-weight: 650; }
svg.fig .grid { stroke: var(--grid, #dfe3e7); stroke-width: 1; fill: none; }
svg.fig .axis { stroke: var(--dim, #5b6570); stroke-width: 1; fill: none; }
svg.fig .border { stroke: var(--edge, #a9b1b9); stroke-width: 1; fill: none; }
svg.fig .seam { stroke: var(--seam, #fff); stroke-width: 1; }
svg.fig .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg.fig .thin { fill: none; stroke-width: 1.4; stroke-linejoin: round; }
svg.fig .s1 { stroke: var(--c1, #0b62a4); }
svg.fig .s2 { stroke: var(--c2, #b84a00); }
svg.fig .sdim { stroke: var(--dim, #5b6570); }
svg.fig .dash { stroke-dasharray: 5 4; }
svg.fig .f1 { fill: var(--c1, #0b62a4); }
svg.fig .f2 { fill: var(--c2, #b84a00); }
svg.fig .fdim { fill: var(--dim, #5b6570); }
svg.fig .band { fill-opacity: .18; stroke: none; }
svg.fig .hit { fill: transparent; stroke: none; }
svg.fig .hit:hover { stroke: var(--ink, #1c2126); stroke-width: 1; }
svg.fig .frame { fill: none; stroke: var(--ink, #1c2126); stroke-width: 1.6; }
svg.fig .hatch { stroke: var(--grid, #dfe3e7); stroke-width: 1.5; }
svg.fig .pixels { image-rendering: pixelated; }
"""


def printable(text: str) -> str:
    """``text`` as XML may hold it (file names may hold more): control characters become spaces, undecodable
    bytes (lone surrogates) are written out."""
    clean = "".join(" " if unicodedata.category(c) == "Cc" or c in "\ufffe\uffff" else c for c in text)
    return clean.encode("utf-8", "backslashreplace").decode("utf-8")


def text_width(text: str, size: float = FONT) -> float:
    """Rough width of sans-serif text in px: wide (CJK) characters are an em, others about 0.57 em."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.57 for c in text)


def shorten(text: str, room: float, size: float = FONT) -> str:
    """``text`` cut to ``room`` px, with an ellipsis where something is missing."""
    text = printable(text)
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "…", size) > room:
        text = text[:-1]
    return text + "…"


def number(value: float, digits: int = 3) -> str:
    """A short decimal for labels: ``digits`` significant ones, a true minus sign, exponents without padding
    (``1e-5``)."""
    size = abs(value)
    text = f"{size:.{digits - 1}e}" if 0 < size < 1e-3 else f"{size:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return f"−{text}" if value < 0 else text


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` + 1 round values (1, 2 or 5 times a power of ten) inside [low, high]."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10, 20) if (high - low) / (s * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def value_range(values: Collection[float]) -> tuple[float, float]:
    """Ends of a linear axis for ``values``: never the same, and zero in place of a low end near it."""
    low, high = min(values), max(values)
    low = 0.0 if 0 < low < 0.5 * high else low
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten inside [low, high], thinned to ``most``; with fewer than two of them, 1-2-5 values."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**d for d in decades if low <= 10.0**d <= high]
    if len(inside) < 2:
        inside = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    return inside[:: math.ceil(len(inside) / most)] if inside else [low]


class Canvas:
    """An SVG under construction; coordinates in px, origin at the top left.

    Args:
        width, height: size in px (also the viewBox).
        ident: prefix of the ids inside, unique in the page.
        title, description: what a screen reader says.
    """

    def __init__(self, width: float, height: float, *, ident: str, title: str, description: str) -> None:
        self.width, self.height, self.ident = width, height, ident
        self._title, self._description = title, description
        self._parts: list[str] = []

    def add(self, tag: str, inside: str | Markup | None = None, /, **attributes: Any) -> None:
        """Append an element; ``inside`` is escaped unless it is Markup; ``_`` in a name becomes ``-``."""
        words = [tag]
        for key, value in attributes.items():
            if value is not None:
                value = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(value)
                words.append(f'{key.rstrip("_").replace("_", "-")}="{value}"')
        head = " ".join(words)
        self._parts.append(f"<{head}/>" if inside is None else f"<{head}>{escape(inside)}</{tag}>")

    def text(
        self, x: float, y: float, text: str, class_: str | None = None, anchor: str | None = None
    ) -> None:
        """A line of text whose baseline is at ``y``."""
        self.add("text", printable(text), x=float(x), y=float(y), class_=class_, text_anchor=anchor)

    def turned(
        self, x: float, y: float, text: str, degrees: int, anchor: str, class_: str | None = None
    ) -> None:
        """Text turned about (x, y)."""
        move = f"translate({x:.1f} {y:.1f}) rotate({degrees})"
        self.add("text", printable(text), transform=move, text_anchor=anchor, class_=class_)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)

    def rect(
        self, x: float, y: float, width: float, height: float, *, tip: str = "", **attributes: Any
    ) -> None:
        """A rectangle; ``tip`` is its hover text."""
        inside = Markup("<title>{}</title>").format(printable(tip)) if tip else None
        self.add(
            "rect", inside, x=float(x), y=float(y), width=float(width), height=float(height), **attributes
        )

    def dot(self, x: float, y: float, tip: str, class_: str) -> None:
        inside = Markup("<title>{}</title>").format(printable(tip))
        self.add("circle", inside, cx=float(x), cy=float(y), r=3.5, class_=class_)

    def svg(self) -> Markup:
        """The finished element."""
        head = Markup(
            '<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" '
            'height="{h}" role="img" aria-labelledby="{i}-t {i}-d"><title id="{i}-t">{t}</title>'
            '<desc id="{i}-d">{d}</desc>'
        ).format(
            w=round(self.width),
            h=round(self.height),
            i=self.ident,
            t=printable(self._title),
            d=printable(self._description),
        )
        return head + Markup("\n".join(self._parts)) + Markup("</svg>")


@dataclass(frozen=True)
class Panel:
    """A plotting area inside a canvas: ``xs`` and ``ys`` are the (low, high) data ranges of its axes."""

    canvas: Canvas
    left: float
    top: float
    width: float
    height: float
    xs: tuple[float, float]
    ys: tuple[float, float]
    log: bool = False

    def x(self, value: float) -> float:
        """Data to px; a range of one point is drawn in the middle."""
        low, high = self.xs
        return self.left + self.width * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        low, high = self.ys
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.top + self.height * (1 - ((value - low) / (high - low) if high > low else 0.5))

    def grid(self, most: int = 4, suffix: str = "") -> None:
        """Horizontal grid lines with their values on the left."""
        for value in (log_ticks if self.log else ticks)(*self.ys, most):
            self.canvas.line(self.left, self.y(value), self.left + self.width, self.y(value), "grid")
            self.canvas.text(self.left - 6, self.y(value) + 4, number(value) + suffix, "dim", "end")

    def path(
        self, xs: Sequence[float], ys: Sequence[float | None], class_: str, lift: Collection[int] = ()
    ) -> None:
        """A line that breaks where ``ys`` is None, and before the points numbered in ``lift``."""
        words: list[str] = []
        pen = "M"
        for k, (x, y) in enumerate(zip(xs, ys, strict=True)):
            if y is None or k in lift:
                pen = "M"
            if y is None:
                continue
            words.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        if len(words) == 1:
            words.append("h0.1")  # a lone point is still seen, thanks to the round line cap
        self.canvas.add("path", d="".join(words), class_=class_)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], class_: str) -> None:
        """The area between two lines."""
        points = [*zip(xs, high, strict=True), *reversed(list(zip(xs, low, strict=True)))]
        words = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.canvas.add("polygon", points=words, class_=f"band {class_}")


def spread(wanted: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart to at least ``gap`` px inside [low, high], keeping their order of height."""
    wanted = list(wanted)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    floor = low
    for i in order:
        placed[i] = max(wanted[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def task_borders(
    run: RunData, canvas: Canvas, left: float, width: float, xs: tuple[int, int], top: float, bottom: float
) -> None:
    """A vertical line where each task begins, with its number (its name where there is room) above."""
    panel = Panel(canvas, left, top, width, bottom - top, xs, (0, 1))
    edges = [panel.x(step) for _, step in run.borders] + [left + width]
    for (stage, _), x, following in zip(run.borders, edges, edges[1:], strict=False):
        if stage:
            canvas.line(x, top - 8, x, bottom, "border")
        room = following - x - 4
        name = run.tasks[stage] if stage < len(run.tasks) else f"task {stage + 1}"
        text = name if text_width(name) < room else f"{stage + 1}"
        if text_width(text) < room:
            canvas.text(x + (following - x) / 2, top - 12, text, "dim", "middle")


def step_axis(canvas: Canvas, left: float, width: float, xs: tuple[int, int], y: float) -> None:
    """The shared horizontal axis in optimizer steps."""
    panel = Panel(canvas, left, y, width, 1, xs, (0, 1))
    canvas.line(left, y, left + width, y, "axis")
    for tick in ticks(*xs, 8 if width > 400 else 4):
        canvas.text(panel.x(tick), y + 17, f"{tick:g}", "dim", "middle")
    canvas.text(left + width, y + 33, "optimizer step", "dim", "end")


@dataclass(frozen=True)
class Figure:
    """A chart ready for the page; ``csv`` is a data: address of the numbers behind it."""

    key: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup
    csv: str


def csv_address(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A data: address of ``rows`` as CSV, with the byte-order mark that spreadsheets need to see UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return "data:text/csv;charset=utf-8," + quote(
        "\ufeff" + text.getvalue(), safe=",.-:()'", errors="backslashreplace"
    )


def both(draw: Callable[[float, str], Canvas], prefix: str, key: str) -> tuple[Markup, Markup]:
    """A chart drawn at both widths; ``draw`` takes the width and an id that is unique in the page."""
    return draw(WIDE, f"{prefix}-{key}-wide").svg(), draw(NARROW, f"{prefix}-{key}-narrow").svg()
