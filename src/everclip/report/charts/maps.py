"""Draw stage x task heatmaps of many groups in one colour scale: accuracy, and what has been forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from everclip.report.charts.canvas import BLUE, ORANGE, WIDE, Canvas, Figure, both, csv_text, png, shorten
from everclip.report.charts.matrix import cividis
from everclip.report.groups import Group, Setting

_MOST_NUMBERS = 12  # tasks up to which cells have numbers


@dataclass(frozen=True)
class _Scale:
    """Colours of the cells, and what the legend says of them."""

    colours: Callable[[NDArray[np.float64]], NDArray[np.uint8]]  # values to RGBA
    ends: tuple[float, float]
    title: str
    unit: str


def accuracy_maps(setting: Setting) -> Figure | None:
    """R of each group."""
    return _figure(
        setting,
        "matrix",
        "Accuracy on each task after each task",
        "Rows: after one more task; columns: the test images of one task, among all classes learned by then. In %,"
        " means over seeds; all maps have the colours of one scale.",
        [(group, group.matrix) for group in setting.groups + setting.level],
        _Scale(lambda values: cividis(values), (0.0, 1.0), "accuracy", " %"),
    )


def forgetting_maps(setting: Setting) -> Figure | None:
    """For each task, the best accuracy of an earlier stage minus the one after this stage."""
    maps = [(group, forgotten(group.matrix)) for group in setting.groups + setting.level]
    largest = max((abs(v) for _, rows in maps for row in rows for v in row if v is not None), default=0.0)
    reach = max(0.05, math.ceil(20 * largest) / 20)
    return _figure(
        setting,
        "forgetting",
        "Forgetting of each task after each task",
        "Points that a task has lost since its best earlier accuracy (orange), or gained on it (blue); rows and columns"
        " as above, without the first row and the last column, where nothing can be forgotten yet.",
        [(group, [row[:-1] for row in rows[1:]]) for group, rows in maps],
        _Scale(lambda values: _diverging(values / reach), (-reach, reach), "points lost", ""),
    )


def forgotten(matrix: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """F[t, i] = max over s < t of R[s, i], minus R[t, i] (Chaudhry et al. 2018); None before task i is old."""
    rows: list[list[float | None]] = []
    best: dict[int, float] = {}
    for t, row in enumerate(matrix):
        rows.append([best[i] - now if i in best and now is not None else None for i, now in enumerate(row)])
        for i, now in enumerate(row[: t + 1]):
            if now is not None:
                best[i] = max(now, best.get(i, now))
    return rows


def _figure(
    setting: Setting,
    key: str,
    title: str,
    caption: str,
    maps: Sequence[tuple[Group, list[list[float | None]]]],
    scale: _Scale,
) -> Figure | None:
    maps = [(group, rows) for group, rows in maps if rows and rows[0] and group.method != "joint"]
    if not maps:
        return None
    sizes = len(setting.memories)  # a row of maps per method, where they fit
    columns = sizes if sizes in (3, 4) else 4
    chart = _Maps(title, [(group.label, rows) for group, rows in maps], columns, scale)
    offset = 2 if key == "forgetting" else 1
    table = [
        [group.method, group.variant, "" if group.memory is None else group.memory, t + offset, *_cells(row)]
        for group, rows in maps
        for t, row in enumerate(rows)
    ]
    width = max(len(row) for _, rows in maps for row in rows)
    return Figure(
        key,
        title,
        caption,
        *both(chart.draw, setting.ident, key),
        csv_text(
            ["method", "variant", "memory", "after_task", *(f"task_{i + 1}" for i in range(width))], table
        ),
    )


def _cells(row: Sequence[float | None]) -> list[object]:
    return ["" if value is None else round(value, 5) for value in row]


@dataclass(frozen=True)
class _Maps:
    title: str
    maps: Sequence[tuple[str, list[list[float | None]]]]
    columns: int
    scale: _Scale

    def draw(self, width: float, ident: str) -> Canvas:
        columns = self.columns if width == WIDE else 2
        gap, head = 24.0, 24.0
        side = (width - 2 - gap * (columns - 1)) / columns
        side = min(side, 300.0)
        tasks = max(len(row) for _, rows in self.maps for row in rows)
        cell = side / tasks
        tall = min(cell, 24.0) * max(len(rows) for _, rows in self.maps)
        rows = math.ceil(len(self.maps) / columns)
        canvas = Canvas(
            width,
            rows * (head + tall + gap) + 40,
            ident=ident,
            title=self.title,
            description=f"{len(self.maps)} maps; the numbers are in the CSV file.",
        )
        for k, (name, values) in enumerate(self.maps):
            x, y = 1 + (k % columns) * (side + gap), head + (k // columns) * (head + tall + gap)
            canvas.text(x, y - 7, shorten(name, side), "strong")
            self._map(canvas, x, y, cell, min(cell, 24.0), values)
        self._legend(canvas, rows * (head + tall + gap) + 10)
        return canvas

    def _map(
        self,
        canvas: Canvas,
        x: float,
        y: float,
        cell: float,
        high: float,
        rows: Sequence[Sequence[float | None]],
    ) -> None:
        values = np.array([[math.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
        rgba = self.scale.colours(values)
        size = {"width": cell * values.shape[1], "height": high * len(rows)}
        canvas.add("image", href=png(rgba), x=x, y=y, **size, preserveAspectRatio="none", class_="cells")
        canvas.rect(x, y, *size.values(), class_="border")
        if cell < 19 or values.shape[1] > _MOST_NUMBERS:
            return
        for t, row in enumerate(rows):
            for i, value in enumerate(row):
                if value is not None:
                    text = f"{100 * value:.0f}".replace("-", "−")
                    place = (x + cell * (i + 0.5), y + high * (t + 0.5) + 4)
                    canvas.text(*place, "0" if text == "−0" else text, _ink(rgba[t, i]))

    def _legend(self, canvas: Canvas, y: float) -> None:
        ident, (low, high) = f"{canvas.ident}-scale", self.scale.ends
        places = np.linspace(low, high, 11)
        stops = Markup("").join(
            Markup('<stop offset="{}%" stop-color="rgb({},{},{})" stop-opacity="{:.2f}"/>').format(
                10 * k, *rgba[:3], rgba[3] / 255
            )
            for k, rgba in enumerate(self.scale.colours(places[None])[0].tolist())
        )
        canvas.add("linearGradient", stops, id=ident)
        left, width = 90.0, 220.0
        canvas.rect(left, y, width, 9, fill=f"url(#{ident})")
        canvas.rect(left, y, width, 9, class_="border")
        canvas.text(left - 10, y + 9, self.scale.title, "dim small", "end")
        for value in (low, (low + high) / 2, high):
            x = left + width * (value - low) / (high - low)
            text = f"{100 * value:.0f}{self.scale.unit}".replace("-", "−")
            canvas.text(x, y + 22, text, "dim small", "middle")


def _ink(rgba: NDArray[np.uint8]) -> str:
    """Text on a cell: the page's own colour where the cell lets the page through."""
    red, green, blue, opacity = (int(value) for value in rgba)
    if opacity < 255:
        return "cell"
    return "cell ondark" if 0.3 * red + 0.59 * green + 0.11 * blue < 125 else "cell onlight"


def _diverging(place: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGBA of places in -1..1: blue below 0, orange above; never so strong that text on it is lost."""
    known = np.nan_to_num(np.clip(place, -1, 1))
    colour = np.where((known > 0)[..., None], ORANGE, BLUE)
    opacity = np.round(0.75 * 255 * np.abs(known))
    return np.concatenate([colour, opacity[..., None]], axis=-1).astype(np.uint8)
