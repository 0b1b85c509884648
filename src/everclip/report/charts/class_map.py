"""Draw one value per class over time: a class x step heatmap around a neutral value, with line charts beneath."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from everclip.report.charts.canvas import (
    BLUE,
    ORANGE,
    WIDE,
    Canvas,
    Figure,
    Panel,
    both,
    csv_text,
    number,
    png,
    shorten,
    spread,
    text_width,
)
from everclip.report.charts.matrix import cividis
from everclip.report.charts.steps import step_axis, task_borders
from everclip.report.read import ClassValues, RunData

_MOST_CELLS = 25_000  # of the CSV file, which would otherwise outweigh the page
_COLUMNS = 600  # of the image
_ROWS = 2000  # of the image, at most: a pixel row has several of them already
_STRIP = 118.0  # px from one line chart beneath the map to the next


@dataclass(frozen=True)
class Scale:
    """The meaning of a map's colours and numbers."""

    place: Callable[
        [NDArray[np.float64]], NDArray[np.float64]
    ]  # value to -1 (blue) .. 0 (page) .. 1 (orange)
    title: str
    ticks: Sequence[str]  # under the legend, evenly spread over -1..1
    missing: str  # what hatching says
    label: Callable[[float], str]  # a value in a few characters
    tip: Callable[[float], str]  # a value in the hover text, after the class's name


@dataclass(frozen=True)
class Strip:
    """A line chart beneath the map: one value per record, or two with the second dashed."""

    title: str
    lines: Sequence[tuple[str, Sequence[float]]]  # (word before the last value, values)
    ys: tuple[float, float]
    suffix: str = ""


@dataclass(frozen=True)
class ClassMap:
    """The content that is drawn, at either width."""

    run: RunData  # its tasks group the rows and steps
    records: Sequence[ClassValues]  # ordered by step, at least one
    scale: Scale
    strips: Sequence[Strip]
    title: str
    ending: str  # a sentence for screen readers on where it ends

    @cached_property
    def classes(self) -> list[str]:
        """The rows from the top: what the records know, in the order learned; of very many classes some."""
        seen = {name for record in self.records for name in record.values}
        known = [name for name in self.run.classes if name in seen] or sorted(seen)
        return known[:: math.ceil(len(known) / _ROWS)]

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """One row per record, one column per class, NaN where the record lacks the class."""
        return np.array([[r.values.get(name, math.nan) for name in self.classes] for r in self.records])

    def figure(self, prefix: str, key: str, caption: str, numbers: Sequence[ClassValues]) -> Figure:
        """The figure; ``numbers`` are the records as the CSV file gives them."""
        thin = math.ceil(len(numbers) * len(self.classes) / _MOST_CELLS)
        rows = [
            [r.step, *(f"{r.values[name]:.3g}" if name in r.values else "" for name in self.classes)]
            for r in numbers[::-thin][::-1]
        ]
        if self.run.results.get("per_class"):
            caption += (
                " The two columns beside the map: the class's accuracy right after its task, and at the end."
            )
        if thin > 1:
            caption += f" The CSV file has every {thin}th record; metrics.jsonl has all."
        if len(self.classes) < len(self.records[-1].values):
            caption += f" Of very many classes {len(self.classes)} are drawn, evenly spread over their order."
        text = csv_text(["step", *self.classes], rows)
        return Figure(key, self.title, caption, *both(self._draw, prefix, key), text)

    def _draw(self, width: float, ident: str) -> Canvas:
        return _Drawing(self, width, ident).draw()


class _Drawing:
    """Geometry and drawing of a map."""

    def __init__(self, of: ClassMap, width: float, ident: str) -> None:
        self.run, self.records, self.classes, self.table = of.run, of.records, of.classes, of.table
        self.scale, self.strips = of.scale, of.strips
        rows = len(of.classes)
        self.left, self.right = (64.0, 150.0) if width == WIDE else (42.0, 100.0)
        self.accuracy = {str(row["class"]): row for row in of.run.results.get("per_class", [])}
        self.beside = (24.0 if width == WIDE else 18.0) if self.accuracy else 0.0
        self.right += self.beside
        self.plot = width - self.left - self.right
        self.row = min(15.0, max(110.0, min(520.0, 5.0 * rows)) / rows)
        self.row = max(self.row, min(15.0, 200.0 / rows))
        self.top = 34.0
        self.bottom = self.top + self.row * rows
        self.foot = self.bottom + 12 + _STRIP * len(of.strips)
        steps = [int(step["global_step"]) for step in of.run.steps] + [record.step for record in of.records]
        self.steps = (min(steps), max(steps))
        self.last = dict(zip(of.classes, self._nearest(self.steps[1]).tolist(), strict=True))
        self.canvas = Canvas(
            width,
            self.foot + 92,
            ident=ident,
            title=of.title,
            description=f"{rows} classes by {len(of.records)} recorded steps; numbers in the CSV file."
            f" {of.ending}",
        )

    def draw(self) -> Canvas:
        canvas = self.canvas
        axes = (self.run, canvas, self.left, self.plot, self.steps)
        self._hatch()
        canvas.add(
            "image",
            href=self._image(),
            x=self.left,
            y=self.top,
            width=self.plot,
            height=self.bottom - self.top,
            preserveAspectRatio="none",
            class_="pixels",
        )
        self._groups()
        self._accuracies()
        self._class_names()
        task_borders(*axes, self.top, self.foot)
        for k, strip in enumerate(self.strips):
            self._strip(self.bottom + 40 + _STRIP * k, strip)
        step_axis(canvas, self.left, self.plot, self.steps, self.foot)
        self._legend(self.foot + 58)
        return canvas

    def _of_stage(self, stage: int) -> list[int]:
        """The records of a stage (all of them where the log has lost its own)."""
        return [k for k, r in enumerate(self.records) if r.stage == stage] or list(range(len(self.records)))

    def _nearest(self, step: float) -> NDArray[np.float64]:
        """Each class's value in the nearest record of the same stage that has one, else NaN."""
        borders = self.run.borders
        stage = max((s for s, first in borders if first <= step), default=borders[0][0])
        order = sorted(self._of_stage(stage), key=lambda k: abs(self.records[k].step - step))
        values = self.table[order]
        return values[np.isfinite(values).argmax(0), np.arange(len(self.classes))]

    def _image(self) -> str:
        """One pixel row per class; more columns than most runs have records, so they end at the task borders."""
        low, high = self.steps
        middles = (np.arange(_COLUMNS) + 0.5) / _COLUMNS
        values = np.array([self._nearest(step) for step in low + (high - low) * middles]).T
        return png(_colours(self.scale.place(values)))

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(task, first row, last row + 1) of neighbouring classes that one task teaches."""
        return list(_runs([self.run.class_task.get(name, 0) for name in self.classes]))

    def _hatch(self) -> None:
        """Hatch the rows of each stage that no record of it has a value for."""
        ident = f"{self.canvas.ident}-hatch"
        lines = Markup('<path d="M-1 7L7 -1M5 7L7 5M-1 1L1 -1" class="hatch"/>')
        self.canvas.add("pattern", lines, id=ident, width=6, height=6, patternUnits="userSpaceOnUse")
        panel = Panel(self.canvas, self.left, self.top, self.plot, 1, self.steps, (0, 1))
        edges = [self.left, *(panel.x(first) for _, first in self.run.borders[1:]), self.left + self.plot]
        for (stage, _), x, end in zip(self.run.borders, edges, edges[1:], strict=False):
            missing = [bool(np.isnan(column).all()) for column in self.table[self._of_stage(stage)].T]
            for empty, first, after in _runs(missing):
                if empty and end > x:
                    y, height = self.top + self.row * first, self.row * (after - first)
                    self.canvas.rect(x, y, end - x, height, fill=f"url(#{ident})")

    def _groups(self) -> None:
        canvas, blocks = self.canvas, self._blocks()
        canvas.rect(self.left, self.top, self.plot, self.bottom - self.top, class_="axis")
        for task, first, end in blocks:
            y = self.top + self.row * first
            if first:
                canvas.line(self.left - 5, y, self.left + self.plot, y, "border")
            if self.row * (end - first) >= 11 and len(blocks) > 1:
                name = self.run.tasks[task]
                label = name if text_width(name) <= self.left - 9 else f"{task + 1}"
                canvas.text(self.left - 8, y + self.row * (end - first) / 2 + 4, label, "dim", "end")

    def _accuracies(self) -> None:
        """Two columns beside the map: each class's accuracy after its task, and at the end."""
        if not self.accuracy:
            return
        rows = [self.accuracy.get(name, {}) for name in self.classes]
        values = np.array(
            [[row.get(key) for key in ("after_learning", "last")] for row in rows], dtype=np.float64
        )
        x, width, high = self.left + self.plot + 6, self.beside - 8, self.bottom - self.top
        place = {"x": x, "y": self.top, "width": width, "height": high, "preserveAspectRatio": "none"}
        self.canvas.add("image", href=png(cividis(values)), **place, class_="cells")
        self.canvas.line(x + width / 2, self.top, x + width / 2, self.bottom, "seam")

    def _class_names(self) -> None:
        """Name the classes of the largest values at the right edge (all where rows are high enough)."""
        canvas, edge, last = self.canvas, self.left + self.plot + self.beside, self.last
        here = [name for name in self.classes if math.isfinite(last[name])]
        most = set(here if self.row >= 12 else sorted(here, key=lambda name: -last[name])[:8])
        chosen = [name for name in here if name in most]
        centre = {name: self.top + self.row * (row + 0.5) for row, name in enumerate(self.classes)}
        labels = {name: self.scale.label(last[name]) for name in chosen}
        indent = max([37.0, *(text_width(label, 13) + 8 for label in labels.values())])
        for name, y in zip(
            chosen, spread((centre[n] for n in chosen), 14, self.top + 6, self.bottom - 4), strict=True
        ):
            canvas.line(edge + 1, centre[name], edge + 8, y, "border")
            canvas.text(edge + 11, y + 4, labels[name], "strong")
            canvas.text(edge + 11 + indent, y + 4, shorten(name, self.right - indent - 13))
        for name in self.classes:
            tip = f"{name}: {self.scale.tip(last[name])}" if math.isfinite(last[name]) else name
            tip += self._accuracy_tip(name)
            canvas.rect(self.left, centre[name] - self.row / 2, self.plot, self.row, class_="hit", tip=tip)

    def _accuracy_tip(self, name: str) -> str:
        row = self.accuracy.get(name, {})
        known = [100 * v for key in ("after_learning", "last") if (v := row.get(key)) is not None]
        return (
            f"; accuracy {known[0]:.0f} % after its task, {known[1]:.0f} % at the end"
            if len(known) == 2
            else ""
        )

    def _strip(self, top: float, strip: Strip) -> None:
        panel = Panel(self.canvas, self.left, top + 12, self.plot, 74, self.steps, strip.ys)
        panel.grid(3, strip.suffix)
        x, stages = [record.step for record in self.records], [record.stage for record in self.records]
        lift = {k for k in range(1, len(x)) if stages[k] != stages[k - 1]}
        for (_, y), class_ in reversed(list(zip(strip.lines, ("line s1", "line s2 dash"), strict=False))):
            panel.path(x, y, class_, lift)
        self.canvas.text(self.left, top, strip.title, "strong halo")
        at = spread((panel.y(y[-1]) + 4 for _, y in strip.lines), 15, top + 12, top + 90)
        for (word, y), class_, where in zip(strip.lines, ("c1", "c2"), at, strict=False):
            text = f"{word} {number(y[-1])}{strip.suffix}".strip()
            self.canvas.text(self.left + self.plot + 8, where, text, class_)

    def _legend(self, y: float) -> None:
        canvas, width, scale = self.canvas, 168.0, self.scale
        ident = f"{canvas.ident}-colours"
        stops = Markup("").join(
            Markup('<stop offset="{:.1f}%" stop-color="rgb({},{},{})" stop-opacity="{:.2f}"/>').format(
                100 * k / 12, *rgba[:3], rgba[3] / 255
            )
            for k, rgba in enumerate(_colours(np.linspace(-1, 1, 13)).tolist())
        )
        canvas.add("linearGradient", stops, id=ident)
        canvas.rect(self.left, y, width, 10, fill=f"url(#{ident})")
        canvas.rect(self.left, y, width, 10, class_="border")
        for k, label in enumerate(scale.ticks):
            x = self.left + width * k / (len(scale.ticks) - 1)
            canvas.text(x, y + 23, label, "dim small", "middle")
        canvas.text(self.left, y - 6, scale.title, "dim small")
        canvas.rect(self.left + width + 24, y, 22, 10, fill=f"url(#{canvas.ident}-hatch)")
        canvas.rect(self.left + width + 24, y, 22, 10, class_="border")
        canvas.text(self.left + width + 52, y + 9, scale.missing, "dim small")


def _runs(keys: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(key, first index, last index + 1) of each run of equal neighbours."""
    first = 0
    for k in range(1, len(keys) + 1):
        if k == len(keys) or keys[k] != keys[first]:
            yield keys[first], first, k
            first = k


def _colours(place: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGBA of places in -1..1 (those beyond are cut): transparent at 0, orange above, blue below; NaN is
    transparent.

    Opacity carries the size, so the neutral colour is the page's own, light or dark.
    """
    place = np.nan_to_num(np.clip(place, -1, 1))
    colour = np.where((place > 0)[..., None], ORANGE, BLUE)
    opacity = np.round(51 * np.abs(place)) * 5  # few enough colours for a palette, which halves the image
    return np.concatenate([colour, opacity[..., None]], axis=-1).astype(np.uint8)
