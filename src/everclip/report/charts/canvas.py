"""Draw SVG by hand on a small canvas.

Charts are drawn with the CSS classes of ``style``, in px.
"""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from everclip.report.charts import style
from everclip.report.charts.pdf import colours_of, pdf
from everclip.system import text as texts

WIDE, NARROW = 920, 360  # px: every chart is drawn for a desk or paper, and for a phone
ORANGE, BLUE = (
    (217, 95, 2),
    (24, 116, 205),
)  # more and less than a neutral
FONT = 12.0  # px, of everything that is not a headline


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

    def mark(self, look: int, x: float, y: float, tip: str = "", size: float = 4.0) -> None:
        """The marker of a look; ``size`` is about half its width in px."""
        inside = Markup("<title>{}</title>").format(printable(tip)) if tip else None
        corners, class_ = style.corners(look), style.fill(look)
        if corners:
            points = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in corners)
            self.add("polygon", inside, points=points, class_=class_)
        else:
            self.add("circle", inside, cx=float(x), cy=float(y), r=size, class_=class_)

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
    """Move label positions apart to at least ``gap`` px inside [low, high], keeping their order of height.

    Labels that would collide stand around the mean of where they should be (isotonic regression: least squares).
    """
    wanted = list(wanted)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # the mean place, less the gaps above it, of labels that touch
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, more = blocks.pop()
            mean, count = (before * more + mean * count) / (more + count), more + count
        blocks.append((mean, count))
    last = high - (len(wanted) - 1) * gap
    free = [min(max(mean, low), last) for mean, count in blocks for _ in range(count)]
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = free[rank] + rank * gap
    return placed


@dataclass(frozen=True)
class Figure:
    """A chart ready for the page; ``csv`` is the text of the file with the numbers behind it."""

    key: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup
    csv: str

    @property
    def pdf(self) -> bytes:
        """The wide chart as a PDF file."""
        return pdf(self.wide)

    def addresses(self, pdfs: bool) -> list[tuple[str, str]]:
        """(ending, data: address) of the files that need no script; the PDF file where it is asked for."""
        found = [("csv", address(self.csv))]
        if pdfs:
            packed = base64.b64encode(self.pdf).decode()
            found.insert(0, ("pdf", f"data:application/pdf;base64,{packed}"))
        return found


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """``rows`` as CSV, with the byte-order mark that spreadsheets need to see UTF-8."""
    return "\ufeff" + texts.csv_text(header, rows)


def address(csv: str) -> str:
    """A data: address of a CSV text."""
    return "data:text/csv;charset=utf-8," + quote(csv, safe=",.-:()'", errors="backslashreplace")


def csv_address(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A data: address of ``rows`` as CSV."""
    return address(csv_text(header, rows))


def both(draw: Callable[[float, str], Canvas], prefix: str, key: str) -> tuple[Markup, Markup]:
    """A chart drawn at both widths; ``draw`` takes the width and an id that is unique in the page."""
    return draw(WIDE, f"{prefix}-{key}-wide").svg(), draw(NARROW, f"{prefix}-{key}-narrow").svg()


def png(rgba: NDArray[np.uint8]) -> str:
    """A data: address of ``[height, width, 4]`` as a PNG image, with a palette where there are few colours."""
    colours, places = colours_of(rgba)
    if len(colours) <= 256:
        image = Image.fromarray(places.astype(np.uint8), "P")
        image.putpalette(colours.tobytes(), "RGBA")
    else:
        image = Image.fromarray(rgba)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
