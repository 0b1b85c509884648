"""Draw the accuracy matrix R[t, i], the accuracy on each task after each task, and forgetting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from everclip.errors import check_choice
from everclip.metrics.matrix import forgotten
from everclip.plots import style
from everclip.plots.panels import axes, extent
from everclip.plots.runs import One, Runs, groups_of, nothing, run_of
from everclip.plots.text import printable, shorten, text_width
from everclip.plots.tips import Tips
from everclip.runs.read import RunData

MOST = 60
"""Most tasks drawn; of more, evenly spaced ones, as a thousand tasks would be a million cells."""
_VECTORS = 20
"""Most columns drawn cell by cell; more are drawn as an image."""
_MOST_NUMBERS = 12
"""Most tasks of a small map with numbers in its cells."""
Rows = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Shown:
    """What is drawn of a run: the tasks at ``places``, and the rows of the learned ones."""

    places: list[int]
    tasks: list[str]
    matrix: list[list[float | None]]
    accuracy: list[float]
    forgetting: list[float | None]
    base: list[float | None]

    @classmethod
    def of(cls, run: RunData) -> Shown:
        """Return all tasks of a run, or ``MOST`` of them."""
        count, done = len(run.tasks), len(run.matrix)
        places = sorted({*np.linspace(0, count - 1, min(count, MOST)).round().astype(int).tolist(), done - 1})
        stages = [place for place in places if place < done]
        base = run.results.get("zero_shot_per_task") or []
        return cls(
            places,
            [run.tasks[i] for i in places],
            [[run.matrix[t][i] for i in places] for t in stages],
            [run.accuracy[t] for t in stages],
            [run.forgetting[i] for i in places],
            [base[i] for i in places] if base else [],
        )


def accuracy_matrix(run: One, ax: Axes | None = None) -> Axes:
    """Draw R[t, i] of a run in %: a row for each task learned, a column for the test images of each task.

    Above, the pretrained model (each task among the classes up to it); at the right, all classes learned so far;
    beneath, points lost since the task's best earlier accuracy (Chaudhry et al. 2018). Outlined: the task just learned.
    Italic: a task not learned yet, measured one ahead.

    Raises:
        UserError: no task has been learned.
    """
    read = run_of(run)
    if not read.matrix:
        raise nothing("no task has been learned")
    return _Matrix(Shown.of(read), axes(ax, 8.0, 5.0)).draw()


class _Matrix:
    """A chart with the tasks in columns from 0, all classes after a gap, and the stages in rows from 0."""

    def __init__(self, shown: Shown, ax: Axes) -> None:
        self.shown, self.ax = shown, ax
        self.count, self.done = len(shown.tasks), len(shown.matrix)
        self.width, self.height = extent(ax)
        self.gap, self.all = 0.012 * self.count + 0.1, max(1.0, 0.05 * self.count)
        self.cell = self.width / (self.count + self.gap + self.all)
        self.numbers = self.cell >= 18
        self.boxes: list[tuple[float, float, float, float]] = []
        self.tips: list[str] = []
        self.labels: dict[float, str] = {}

    def draw(self) -> Axes:
        """Draw all cells, numbers, labels and hover texts."""
        shown, count, done, ax = self.shown, self.count, self.done, self.ax
        cividis, fading = colormaps["cividis"], style.diverging(0.75)
        top = -1.2 if shown.base else 0.0
        if shown.base:
            self._cells([shown.base], 0, top, cividis, (0, 1), [f"zero-shot, {name}" for name in shown.tasks])
            self.labels[top + 0.5] = "zero-shot"
        for t, row in enumerate(shown.matrix):
            after = f"after {shown.tasks[t]}"
            self._tips([row], 0, t, [f"{after}: {name}" for name in shown.tasks], 1.0)
            self._tips([[shown.accuracy[t]]], count + self.gap, t, [f"{after}: all tasks so far"], self.all)
            if self.numbers or t % 5 == 0:
                self.labels[t + 0.5] = after if self.width > 400 else f"after {shown.places[t] + 1}"
        self._cells(shown.matrix, 0, 0, cividis, (0, 1))
        whole = [[value] for value in shown.accuracy]
        self._cells(whole, count + self.gap, 0, cividis, (0, 1), width=self.all)
        bottom = float(done)
        if any(value is not None for value in shown.forgetting):
            lost = [f"{name}: points lost since its best" for name in shown.tasks]
            self._cells([shown.forgetting], 0, done + 0.2, fading, (-0.5, 0.5), lost, unit="")
            self.labels[done + 0.7] = "forgetting"
            bottom = done + 1.2
        if self.numbers:
            for t in range(done):
                frame = {"fill": False, "edgecolor": style.INK, "linewidth": 1.6}
                ax.add_patch(Rectangle((t + 0.02, t + 0.02), 0.96, 0.96, **frame))
        Tips(ax, self.boxes, self.tips)
        self._axes(top, bottom)
        return ax

    def _axes(self, top: float, bottom: float) -> None:
        ax, shown = self.ax, self.shown
        end = self.count + self.gap + self.all
        ax.set(xlim=(0, end), ylim=(bottom, top), aspect="auto")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelcolor=style.INK)
        ax.xaxis.tick_top()
        columns = [
            f"{place + 1}" if name == f"task {place + 1}" else shorten(name, 110)
            for place, name in zip(shown.places, shown.tasks, strict=True)
        ]
        turned = max(map(text_width, columns)) > self.cell - 4
        kept = [i for i in range(self.count) if not turned or self.numbers or i % 5 == 0]
        turn = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if turned else {}
        ax.set_xticks([i + 0.5 for i in kept], [columns[i] for i in kept], parse_math=False, **turn)
        where = (end - self.all / 2, 1 + 3.5 / self.height)
        word = "all seen" if self.width > 400 else "all"
        ax.text(*where, word, transform=ax.get_xaxis_transform(), ha="center", fontweight="bold")
        room = 190.0 if self.width > 400 else 72.0
        names = [shorten(name, room) for name in self.labels.values()]
        ax.set_yticks(list(self.labels), names, parse_math=False)
        for label in ax.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in ("zero-shot", "forgetting") else "normal")

    def _cells(
        self,
        rows: Rows,
        left: float,
        top: float,
        colours: Colormap,
        limits: tuple[float, float],
        tips: Sequence[str] = (),
        width: float = 1.0,
        unit: str = " %",
    ) -> None:
        """Draw cells of ``width`` by 1 from (left, top), with numbers and hover texts in ``unit``."""
        values = _array(rows)
        height, columns = values.shape
        seen = {"cmap": colours, "vmin": limits[0], "vmax": limits[1]}
        masked = np.ma.masked_invalid(values)
        if columns <= _VECTORS:
            xs, ys = left + width * np.arange(columns + 1), top + np.arange(height + 1)
            self.ax.pcolormesh(xs, ys, masked, edgecolors=style.PAGE, linewidth=1, **seen)
        else:
            box = (left, left + width * columns, top + height, top)
            self.ax.imshow(masked, extent=box, aspect="auto", interpolation="none", **seen)
        if tips:
            self._tips(rows, left, top, tips, width, unit)
        if self.numbers:
            digits = 1 if self.cell * width >= 38 else 0
            ahead = "italic" if height > 1 else "normal"
            _numbers(self.ax, values, colours, limits, (left, top, width), digits, ahead)

    def _tips(
        self, rows: Rows, left: float, top: float, tips: Sequence[str], width: float, unit: str = " %"
    ) -> None:
        for t, row in enumerate(rows):
            for i, value in enumerate(row):
                if value is not None:
                    x, y = left + width * i, top + t
                    self.boxes.append((x, y, x + width, y + 1))
                    self.tips.append(f"{tips[i]}: {100 * value:.1f}{unit}")


def _array(rows: Rows) -> NDArray[np.float64]:
    """Return ``[rows, columns]``, NaN for None."""
    return np.array([[math.nan if value is None else value for value in row] for row in rows])


def _numbers(
    ax: Axes,
    values: NDArray[np.float64],
    colours: Colormap,
    limits: tuple[float, float],
    place: tuple[float, float, float] = (0.0, 0.0, 1.0),
    digits: int = 0,
    ahead: str = "normal",
) -> None:
    """Write numbers on cells from ``place`` (left, top, width); ``ahead`` is the style right of the diagonal."""
    left, top, width = place
    rgba = colours((values - limits[0]) / (limits[1] - limits[0]))
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 12 if digits else 10.5}
    for (t, i), value in np.ndenumerate(values):
        if math.isfinite(value):
            look |= {"color": ink(rgba[t, i]), "fontstyle": ahead if i > t else "normal"}
            ax.text(left + width * (i + 0.5), top + t + 0.5, signed(value, digits), **look)


def signed(value: float, digits: int) -> str:
    """Return a fraction in percent for a cell, with a true minus sign."""
    text = f"{100 * value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def ink(rgba: Iterable[float]) -> str:
    """Return the colour of text on a cell: the usual one where the cell is transparent."""
    red, green, blue, opacity = rgba
    if opacity < 0.999:
        return style.INK
    return style.ON_DARK if 0.3 * red + 0.59 * green + 0.11 * blue < 0.49 else style.ON_LIGHT


def task_heatmap(
    runs: Runs,
    ax: Axes | None = None,
    *,
    of: Literal["accuracy", "forgetting"] = "accuracy",
    reach: float = 0.5,
) -> Axes:
    """Draw R[t, i] of one method, the mean over its seeds, or the points that each task has lost after each task.

    Args:
        runs: differing in their seed alone; or a matrix of fractions ``[stages, tasks]``, None where not measured.
        of: ``accuracy`` in 0..1 (cividis), or ``forgetting`` (orange: points lost since the best; blue: gained).
        reach: the forgetting that has the strongest colour.

    Raises:
        UserError: the runs are of several methods or memory sizes, or no task has been learned.
    """
    check_choice("of", of, ("accuracy", "forgetting"))
    rows, forgetting = _rows(runs)
    limits, colours, missing = (0.0, 1.0), colormaps["cividis"], "no task has been learned"
    if of == "forgetting":
        rows, missing = lost(forgetting), "no task has been followed by another"
        limits, colours = (-reach, reach), style.diverging(0.75)
    if not rows or not rows[0]:
        raise nothing(missing)
    ax = axes(ax, 4.5, 4.0)
    values = _array(rows)
    box = (0, values.shape[1], values.shape[0], 0)
    seen = {"cmap": colours, "vmin": limits[0], "vmax": limits[1]}
    ax.imshow(np.ma.masked_invalid(values), extent=box, aspect="auto", interpolation="none", **seen)
    ax.set(xticks=[], yticks=[], xlabel="tasks tested", ylabel="tasks learned")
    ax.grid(False)
    ax.spines[:].set(visible=True, color=style.EDGE)
    if extent(ax)[0] / values.shape[1] >= 19 and values.shape[1] <= _MOST_NUMBERS:
        _numbers(ax, values, colours, limits)
    return ax


def _rows(runs: Any) -> tuple[Rows, Rows]:
    """Return R and the forgetting F, of a matrix or as means over the runs of one group."""
    if isinstance(runs, list | np.ndarray) and len(runs) and np.ndim(cast(Any, runs[0])):
        rows: Rows = [
            [None if value is None or math.isnan(value) else float(value) for value in row]
            for row in cast(Any, runs)
        ]
        return rows, forgotten(rows)
    first, *others = groups_of(runs)
    if others:
        names = ", ".join(printable(group.label) for group in (first, *others))
        raise nothing(f"a heatmap shows runs that differ in their seed alone, and these are {names}")
    return first.matrix, first.forgotten


def lost(forgetting: Rows) -> Rows:
    """Return F without the first row and the last column, which have no values."""
    return [row[:-1] for row in forgetting[1:]]
