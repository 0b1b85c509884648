"""Draw one value per class over time: GDRO's class weights, and class losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from everclip.plots import style
from everclip.plots.panels import Line, Panel, axes, extent, value_range
from everclip.plots.runs import One, nothing, run_of
from everclip.plots.text import number, printable, shorten, spread, text_width
from everclip.plots.tips import Tips
from everclip.plots.training import broken, entropy, shares, task_borders
from everclip.runs.read import ClassValues, RunData

COLUMNS = 600
"""Columns of a map's image."""
_ROWS = 2000  # most rows of a map's image
HATCHED: dict[str, Any] = {"hatch": "////", "fill": False, "edgecolor": style.GRID, "linewidth": 0}
"""The look of missing values."""
_OCTAVES = 3.0  # class weights are coloured from 1/8 to 8 times uniform
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """The meaning of a map's colours and numbers."""

    place: Callable[[Values], Values]  # from -1 (blue) over 0 (page) to 1 (orange)
    title: str
    ticks: Sequence[str]  # under the legend, evenly spaced over -1..1
    missing: str  # the meaning of hatching
    label: Callable[[float], str]  # a value in a few characters
    tip: Callable[[float], str]  # a value in the hover text, after the class's name


@dataclass(frozen=True)
class ClassMap:
    """One value per class over time."""

    run: RunData
    records: Sequence[ClassValues]  # ordered by step, at least one
    scale: Scale

    @cached_property
    def classes(self) -> list[str]:
        """The rows from the top: recorded classes in the order learned, evenly spaced if there are too many."""
        seen = {name for record in self.records for name in record.values}
        found = [name for name in self.run.classes if name in seen] or sorted(seen)
        return found[:: math.ceil(len(found) / _ROWS)]

    @cached_property
    def table(self) -> Values:
        """``[records, classes]``, NaN where a record lacks a class."""
        return np.array([[r.values.get(name, math.nan) for name in self.classes] for r in self.records])

    @cached_property
    def steps(self) -> tuple[float, float]:
        """First and last step."""
        steps = [int(step["global_step"]) for step in self.run.steps]
        steps += [record.step for record in self.records]
        low, high = min(steps), max(steps)
        return (low, high) if high > low else (low, low + 1)

    @cached_property
    def accuracy(self) -> dict[str, tuple[float | None, float | None]]:
        """Each class's accuracy right after its task, and at the end; empty until the run has finished, and where the
        two are on different test images."""
        rows = self.run.results.get("per_class", []) if self.run.same_images else []
        return {str(row["class"]): (row["after_learning"], row["last"]) for row in rows}

    def of_stage(self, stage: int) -> list[int]:
        """Return the indices of a stage's records; of all records if the log has none of it."""
        return [k for k, r in enumerate(self.records) if r.stage == stage] or list(range(len(self.records)))

    def nearest(self, step: float) -> Values:
        """``[classes]``: each class's value in the nearest record of the same stage that has one, else NaN."""
        borders = self.run.borders
        stage = max((s for s, first in borders if first <= step), default=borders[0][0])
        order = sorted(self.of_stage(stage), key=lambda k: abs(self.records[k].step - step))
        values = self.table[order]
        return values[np.isfinite(values).argmax(0), np.arange(len(self.classes))]

    @cached_property
    def image(self) -> Values:
        """``[classes, COLUMNS]``: values over steps, as places on the scale."""
        low, high = self.steps
        middles = low + (high - low) * (np.arange(COLUMNS) + 0.5) / COLUMNS
        return np.clip(self.scale.place(np.array([self.nearest(step) for step in middles]).T), -1, 1)

    def draw(self, ax: Axes) -> Axes:
        """Draw the map with its tasks, the accuracy of each class and the names of some."""
        rows, (low, high) = len(self.classes), self.steps
        shown = {"cmap": style.diverging(), "vmin": -1, "vmax": 1, "interpolation": "none", "aspect": "auto"}
        ax.imshow(np.ma.masked_invalid(self.image), extent=(low, high, rows, 0), **shown)
        ax.grid(False)
        ax.spines[:].set_visible(True)
        self._hatch(ax)
        self._groups(ax)
        task_borders(self.run, ax)
        self._names(ax, self._accuracies(ax))
        return ax

    def _hatch(self, ax: Axes) -> None:
        """Hatch the classes of each stage without a value in its records."""
        edges = [self.steps[0], *(first for _, first in self.run.borders[1:]), self.steps[1]]
        for (stage, _), start, end in zip(self.run.borders, edges, edges[1:], strict=False):
            missing = [bool(np.isnan(column).all()) for column in self.table[self.of_stage(stage)].T]
            for empty, first, after in _runs(missing):
                if empty and end > start:
                    ax.add_patch(Rectangle((start, first), end - start, after - first, **HATCHED))

    def _groups(self, ax: Axes) -> None:
        """Draw lines between tasks, and their names."""
        blocks = list(_runs([self.run.class_task.get(name, 0) for name in self.classes]))
        row = extent(ax)[1] / len(self.classes)
        room = 64.0 if extent(ax)[0] > 400 else 38.0
        labels: dict[float, str] = {}
        for task, first, end in blocks:
            if first:
                ax.axhline(first, color=style.EDGE, linewidth=1)
            if row * (end - first) >= 11 and len(blocks) > 1:
                name = printable(self.run.tasks[task])
                labels[(first + end) / 2] = name if text_width(name) <= room else f"{task + 1}"
        ax.set_yticks(list(labels), list(labels.values()), parse_math=False)
        ax.tick_params(length=0)
        ax.set_xlabel("optimizer step")

    def _accuracies(self, ax: Axes) -> float:
        """Draw each class's accuracy after its task and at the end in two columns; return their width in points."""
        if not self.accuracy:
            return 0.0
        wide = 24.0 if extent(ax)[0] > 400 else 18.0
        found = [self.accuracy.get(name, (None, None)) for name in self.classes]
        values = np.ma.masked_invalid(np.array(found, dtype=np.float64))
        points = extent(ax)[0]
        beside = ax.inset_axes((1 + 6 / points, 0, (wide - 8) / points, 1))
        box = (0, 2, len(self.classes), 0)
        shown = {"cmap": colormaps["cividis"], "vmin": 0, "vmax": 1, "interpolation": "none"}
        beside.imshow(values, extent=box, aspect="auto", **shown)
        beside.axvline(1, color=style.PAGE, linewidth=1)
        beside.set_axis_off()
        return wide

    def _names(self, ax: Axes, beside: float) -> None:
        """Name the classes with the largest values at the right edge, or all if there is room."""
        last = dict(zip(self.classes, self.nearest(self.steps[1]).tolist(), strict=True))
        width, height = extent(ax)
        row = height / len(self.classes)
        here = [name for name in self.classes if math.isfinite(last[name])]
        most = set(here if row >= 12 else sorted(here, key=lambda name: -last[name])[:8])
        chosen = [name for name in here if name in most]
        centre = {name: 1 - (k + 0.5) / len(self.classes) for k, name in enumerate(self.classes)}
        labels = {name: self.scale.label(last[name]) for name in chosen}
        indent = max([37.0, *(text_width(label, 13) + 8 for label in labels.values())])
        room = (150.0 if width > 400 else 100.0) - 11 - indent
        places = spread((centre[name] for name in chosen), 14 / height, 5 / height, 1 - 5 / height)
        beyond = {"transform": ax.transAxes, "clip_on": False}
        text = {"transform": ax.transAxes, "va": "center", "parse_math": False}
        for name, y in zip(chosen, places, strict=True):
            x = [1 + (beside + points) / width for points in (1, 8, 11, 11 + indent)]
            ax.plot(x[:2], [centre[name], y], color=style.EDGE, linewidth=1, **beyond)
            ax.text(x[2], y, labels[name], fontweight="bold", **text)
            ax.text(x[3], y, shorten(name, room), **text)
        low, high = self.steps
        boxes = [(low, k, high, k + 1) for k in range(len(self.classes))]
        Tips(ax, boxes, [self._tip(name, last[name]) for name in self.classes])

    def _tip(self, name: str, last: float) -> str:
        tip = f"{name}: {self.scale.tip(last)}" if math.isfinite(last) else name
        after, end = self.accuracy.get(name, (None, None))
        if after is None or end is None:
            return tip
        return f"{tip}; accuracy {100 * after:.0f} % after its task, {100 * end:.0f} % at the end"


def _runs(keys: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (key, first index, last index + 1) of each run of equal neighbours."""
    end = 0
    for key, same in groupby(keys):
        first, end = end, end + len(list(same))
        yield key, first, end


def class_weights(run: One, ax: Axes | None = None) -> Axes:
    """Draw GDRO's weight of each class over steps, as a multiple of uniform: blue below, orange above, from 1/8 to 8.

    One row per class, in the order learned, hatched before that. At the right, each class's accuracy after its task
    and at the end (cividis) if both are on the same test images, and the last multiple of the heaviest classes.

    Raises:
        UserError: no class weights were logged.
    """
    return _drawn(weight_map(run_of(run)), ax, "weights")


def class_losses(run: One, ax: Axes | None = None) -> Axes:
    """Draw the mean loss of each class's images since the previous record: orange above the run's median, blue below.

    One row per class, in the order learned, hatched where a task has no image of it. At the right as ``class_weights``.

    Raises:
        UserError: no class losses were logged.
    """
    return _drawn(loss_map(run_of(run)), ax, "losses")


def _drawn(found: ClassMap | None, ax: Axes | None, what: str) -> Axes:
    if found is None:
        raise nothing(f"the run has logged no class {what}")
    return found.draw(axes(ax, 9.0, 6.0))


def weight_map(run: RunData) -> ClassMap | None:
    """Return the map of ``class_weights``; None where none were logged."""
    ratios = [
        replace(record, values={name: share * len(record.values) for name, share in record.values.items()})
        for record in map(shares, run.class_weights)
    ]
    return ClassMap(run, ratios, _WEIGHTS) if ratios else None


def weight_strips(run: RunData) -> list[Panel]:
    """Return panels of the class weights over steps: their entropy, and the largest weight beside uniform."""
    records = [shares(record) for record in run.class_weights]
    curve = [entropy(record) for record in records]
    low = 0.0 if min(curve) < 0.5 else math.floor(10 * min(curve)) / 10
    largest = [100 * max(record.values.values()) for record in records]
    uniform = [100 / len(record.values) for record in records]
    top = 1.05 * max([*largest, *uniform])
    curves, title = {"uniform": uniform, "\u200b": largest}, "largest class weight"
    return [
        _strip(run, records, {"\u200b": curve}, (min(low, 0.9), 1.0), "entropy / its maximum"),
        _strip(run, records, curves, (0.0, top), title, " %"),
    ]


def loss_map(run: RunData) -> ClassMap | None:
    """Return the map of ``class_losses``; None where none were logged."""
    if not run.class_losses:
        return None
    values = np.array([value for record in run.class_losses for value in record.values.values()])
    middle = float(np.median(values))
    # Colours cover 95 % of the values around the median: outliers would make the others pale.
    reach = float(np.quantile(abs(values - middle), 0.95)) or float(np.max(abs(values - middle))) or 1.0
    decimals = max(0, 1 - math.floor(math.log10(reach)))
    scale = Scale(
        place=lambda loss: (loss - middle) / reach,
        title="loss; in the middle the median",
        ticks=(f"≤ {number(middle - reach)}", number(middle), f"≥ {number(middle + reach)}"),
        missing="no image",
        label=lambda loss: f"{loss:.{decimals}f}".replace("-", "−") if decimals < 4 else number(loss, 2),
        tip=lambda loss: f"loss {number(loss)} at the end",
    )
    return ClassMap(run, run.class_losses, scale)


def loss_strip(run: RunData) -> Panel:
    """Return a panel of the mean and the largest class loss over steps."""
    mean = [sum(record.values.values()) / len(record.values) for record in run.class_losses]
    largest = [max(record.values.values()) for record in run.class_losses]
    ys = value_range([*mean, *largest])
    return _strip(run, run.class_losses, {"max": largest, "mean": mean}, ys, "mean and largest class loss")


def _strip(
    run: RunData,
    records: Sequence[ClassValues],
    curves: dict[str, list[float]],
    ys: tuple[float, float],
    title: str,
    suffix: str = "",
) -> Panel:
    """Return a panel of one or two curves over the records; the first of two gets the second look."""
    steps, stages = [record.step for record in records], [record.stage for record in records]
    lines: list[Line] = []
    for k, (name, values) in enumerate(reversed(curves.items())):
        dash = {"color": style.SECOND, "linestyle": "--"} if k else {"color": style.FIRST, "linestyle": "-"}
        lines.insert(0, Line(name, 0, *broken(steps, values, stages), settings=dash | {"marker": ""}))
    return Panel(lines, (steps[0], steps[-1]), ys, "optimizer step", suffix=suffix, title=title)


_WEIGHTS = Scale(
    place=lambda ratio: np.log2(np.maximum(ratio, 2**-_OCTAVES)) / _OCTAVES,
    title="weight / uniform weight",
    ticks=("⅛", "¼", "½", "1", "2", "4", "8"),
    missing="not learned yet",
    label=lambda ratio: f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×",
    tip=lambda ratio: f"{ratio:.2f} × uniform at the end",
)
