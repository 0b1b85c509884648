"""Draw the accuracy matrix of the report page: every task after every stage, coloured with cividis.

Cividis is perceptually uniform and reads the same with every kind of colour blindness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from everclip.report.charts.canvas import (
    BLUE,
    ORANGE,
    WIDE,
    Canvas,
    Figure,
    both,
    csv_text,
    shorten,
    text_width,
)
from everclip.report.read import RunData

MOST = 60
"""Tasks drawn; of more, as many evenly spaced ones: a thousand tasks would be a million cells."""


@dataclass(frozen=True)
class _Shown:
    """The part of a run that is drawn; ``places`` are the indices of its tasks."""

    places: list[int]
    tasks: list[str]
    matrix: list[list[float | None]]
    accuracy: list[float]
    forgetting: list[float | None]
    base: list[float | None]

    @classmethod
    def of(cls, run: RunData) -> _Shown:
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


def matrix(run: RunData, prefix: str) -> Figure | None:
    """R[t, i] with the zero-shot row above and forgetting beneath."""
    if not run.matrix:
        return None
    shown = _Shown.of(run)

    def draw(width: float, ident: str) -> Canvas:
        return _Heatmap(shown, width, ident).draw()

    rows: list[list[object]] = [["zero-shot", *shown.base, ""]] if shown.base else []
    rows += [
        [f"after {task}", *row, all_]
        for task, row, all_ in zip(shown.tasks, shown.matrix, shown.accuracy, strict=False)
    ]
    rows.append(["forgetting", *shown.forgetting, ""])
    left_out = len(run.tasks) - len(shown.tasks)
    return Figure(
        "matrix",
        "Accuracy per task after each task",
        "Each row is the model after one more task, each column the test images of one task (in %, among all"
        " classes learned by then). Outlined: the task just learned. Italic: a task not learned yet, measured"
        " one ahead."
        " Bottom row: points lost since the task's best earlier accuracy."
        + (" Top row: the pretrained model, each task among the classes up to it." if shown.base else "")
        + (
            f" {len(shown.tasks)} of {len(run.tasks):,} tasks are drawn; matrix.csv of the run has all."
            if left_out
            else ""
        ),
        *both(draw, prefix, "matrix"),
        csv_text(["stage", *shown.tasks, "all_seen"], rows),
    )


class _Heatmap:
    """Geometry and drawing of the matrix figure."""

    def __init__(self, run: _Shown, width: float, ident: str) -> None:
        self.run, self.wide = run, width == WIDE
        self.base = run.base
        tasks = len(run.tasks)
        labels = [*(self._row_label(t) for t in range(tasks)), "forgetting", "zero-shot"]
        self.left = 12 + min(190.0, max(text_width(label) for label in labels)) if self.wide else 80.0
        self.all = 62.0 if self.wide else 34.0  # the column of A_t, with its gap
        self.cell = min(64.0, (width - self.left - self.all - 2) / tasks)
        self.high = min(30.0, max(self.cell, 9.0))
        self.numbers = self.cell >= 18
        longest = max(text_width(self._column(i)) for i in range(tasks))
        self.turn = longest > self.cell - 4
        self.top = 38 + (min(longest, 110.0) * 0.75 if self.turn else 6.0)
        self.body = self.top + (self.high + 6 if self.base else 0)
        foot = self.body + self.high * len(run.matrix) + 6 + self.high
        self.canvas = Canvas(
            width,
            foot + 62,
            ident=ident,
            title="Accuracy per task after each task",
            description=f"{len(run.matrix)} rows (after each task) by {tasks} columns (tasks); the numbers"
            " are in the CSV file.",
        )

    def _column(self, i: int) -> str:
        name, number = self.run.tasks[i], self.run.places[i] + 1
        return f"{number}" if name == f"task {number}" else name

    def _row_label(self, t: int) -> str:
        return f"after {self.run.tasks[t]}" if self.wide else f"after {self.run.places[t] + 1}"

    def x(self, i: int) -> float:
        return self.left + i * self.cell

    def draw(self) -> Canvas:
        run, canvas = self.run, self.canvas
        canvas.text(self.left, 12, "accuracy on the test images of task", "dim")
        for i in range(len(run.tasks)):
            name = shorten(self._column(i), 110.0)
            if self.turn and (self.numbers or i % 5 == 0):
                canvas.turned(self.x(i) + self.cell / 2 + 3, self.top - 6, name, -45, "start")
            elif not self.turn:
                canvas.text(self.x(i) + self.cell / 2, self.top - 7, name, None, "middle")
        middle = self.x(len(run.tasks)) + self.all - self.all_width / 2
        canvas.text(middle, self.top - 7, "all" if not self.wide else "all seen", "strong", "middle")
        if self.base:
            self._label(self.top, "zero-shot", "strong")
            for i, value in enumerate(self.base):
                if value is not None:
                    self._accuracy(self.x(i), self.top, self.cell, value, f"zero-shot, {run.tasks[i]}")
        for t, row in enumerate(run.matrix):
            self._row(t, row)
        self._forgetting(self.body + self.high * len(run.matrix) + 6)
        self._colour_bar(canvas.height - 26)
        return canvas

    @property
    def all_width(self) -> float:
        return self.all - (8 if self.wide else 4)

    def _row(self, t: int, row: Sequence[float | None]) -> None:
        run, y = self.run, self.body + self.high * t
        if self.numbers or t % 5 == 0:
            self._label(y, self._row_label(t))
        for i, value in enumerate(row):
            if value is not None:
                self._accuracy(
                    self.x(i), y, self.cell, value, f"after {run.tasks[t]}: {run.tasks[i]}", ahead=i > t
                )
        self._accuracy(
            self.x(len(run.tasks)) + self.all - self.all_width,
            y,
            self.all_width,
            run.accuracy[t],
            f"after {run.tasks[t]}: all tasks so far",
        )
        if self.numbers and t < len(run.tasks):
            self.canvas.rect(self.x(t) + 1, y + 1, self.cell - 2, self.high - 2, class_="frame")

    def _label(self, y: float, text: str, class_: str | None = None) -> None:
        self.canvas.text(self.left - 8, y + self.high / 2 + 4, shorten(text, self.left - 10), class_, "end")

    def _accuracy(
        self, x: float, y: float, width: float, value: float, tip: str, ahead: bool = False
    ) -> None:
        red, green, blue = _cividis(value)
        self.canvas.rect(
            x,
            y,
            width,
            self.high,
            fill=f"rgb({red},{green},{blue})",
            class_="seam",
            tip=f"{tip}: {100 * value:.1f} %",
        )
        if self.numbers:
            text = f"{100 * value:.1f}" if width >= 38 else f"{100 * value:.0f}"
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 125
            class_ = (
                ("ondark" if dark else "onlight")
                + (" ahead" if ahead else "")
                + (" small" if width < 38 else "")
            )
            self.canvas.text(x + width / 2, y + self.high / 2 + 4, text, class_, "middle")

    def _forgetting(self, y: float) -> None:
        if all(value is None for value in self.run.forgetting):
            return
        self._label(y, "forgetting", "strong")
        for i, value in enumerate(self.run.forgetting):
            if value is None:
                continue
            colour, strength = (ORANGE, value) if value > 0 else (BLUE, -value)
            tip = f"{self.run.tasks[i]}: {100 * value:+.1f} points lost since its best"
            fill = f"rgb({colour[0]},{colour[1]},{colour[2]})"
            self.canvas.rect(
                self.x(i),
                y,
                self.cell,
                self.high,
                fill=fill,
                fill_opacity=f"{min(0.75, 1.5 * strength):.2f}",
                tip=tip,
            )
            if self.numbers:
                text = (f"{100 * value:.1f}" if self.cell >= 38 else f"{100 * value:.0f}").replace("-", "−")
                class_ = "small" if self.cell < 38 else None
                self.canvas.text(self.x(i) + self.cell / 2, y + self.high / 2 + 4, text, class_, "middle")

    def _colour_bar(self, y: float) -> None:
        ident = f"{self.canvas.ident}-bar"
        stops = Markup("").join(
            Markup('<stop offset="{}%" stop-color="rgb({},{},{})"/>').format(10 * k, *_cividis(k / 10))
            for k in range(11)
        )
        width = min(260.0, self.canvas.width - self.left - 40)
        self.canvas.add("linearGradient", stops, id=ident)
        self.canvas.rect(self.left, y, width, 9, fill=f"url(#{ident})")
        for k in (0, 50, 100):
            self.canvas.text(self.left + width * k / 100, y + 22, f"{k} %", "dim small", "middle")
        self.canvas.text(self.left - 12, y + 9, "accuracy", "dim small", "end")


def _cividis(value: float) -> tuple[int, int, int]:
    red, green, blue = _colour_map()[round(255 * min(1.0, max(0.0, value)))].tolist()
    return red, green, blue


def cividis(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGBA of fractions in 0..1, whatever their shape; NaN is transparent."""
    known = np.nan_to_num(np.clip(values, 0, 1))
    colours = _colour_map()[np.round(255 * known).astype(int)]
    opacity = np.where(np.isnan(values), 0, 255)
    return np.concatenate([colours, opacity[..., None]], axis=-1).astype(np.uint8)


@lru_cache
def _colour_map() -> NDArray[np.uint8]:
    """``[256, 3]``."""
    from matplotlib import colormaps  # slow to import, so only when a page is built

    return colormaps["cividis"](np.arange(256), bytes=True)[:, :3]
