"""Draw the charts of the report page, each twice: wide for a desk or paper, narrow for a phone.

A figure function takes a run and returns None where the run has nothing to draw yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from everclip.report.charts.canvas import (
    WIDE,
    Canvas,
    Figure,
    Panel,
    both,
    csv_text,
    shorten,
    spread,
    text_width,
    ticks,
)
from everclip.report.charts.curves import curves, estimators
from everclip.report.charts.losses import class_losses
from everclip.report.charts.matrix import matrix
from everclip.report.charts.weights import class_weights
from everclip.report.read import RunData


def figures(run: RunData, prefix: str) -> dict[str, Figure]:
    """All figures that ``run`` has data for, by key; ``prefix`` keeps the ids of several runs apart."""
    kinds = (accuracy, matrix, class_weights, class_losses, curves, estimators)
    drawn = (make(run, prefix) for make in kinds)
    return {figure.key: figure for figure in drawn if figure is not None}


class _Base(NamedTuple):
    """A line that the run's own has to beat: the colours of its name, its line and its dots, and fractions."""

    name: str
    text: str
    line: str
    dot: str
    values: list[float]


def _bases(run: RunData) -> list[_Base]:
    """The references that the run has measured."""
    found = [
        _Base("zero-shot", "c2", "line s2 dash", "f2", run.zero_shot),
        _Base("frozen features", "dim", "line sdim dots", "fdim", run.frozen_features),
    ]
    return [base for base in found if base.values]


def accuracy(run: RunData, prefix: str) -> Figure | None:
    """A_t of the run against A_t of the pretrained model, and of the closed form on its features."""
    if not run.accuracy:
        return None
    method = str(run.fact("method") or "run")
    seen, bases, last = _classes_seen(run), _bases(run), len(run.accuracy) - 1
    ends = [f"{method} ends at {100 * run.accuracy[last]:.1f} % after {last + 1} tasks."]
    ends += [f"{base.name.capitalize()} there: {100 * base.values[last]:.1f} %." for base in bases]

    def draw(width: float, ident: str) -> Canvas:
        title = "Accuracy after each task"
        canvas = Canvas(width, 330, ident=ident, title=title, description=" ".join(ends))
        names = {"c1": method} | {base.text: base.name for base in bases}
        if width < WIDE:  # where there is no room for both words
            names = {key: name.removesuffix(" features") for key, name in names.items()}
        right = min(width * 0.34, 16 + max(text_width(f"{name} 00.0", 12.5) for name in names.values()))
        panel = Panel(
            canvas,
            46,
            42,
            width - 46 - right,
            226,
            (-0.25, len(run.tasks) - 0.95 if len(run.tasks) > 1 else 0.25),
            _percent_range(run),
        )
        _accuracy_axes(panel, run, seen)
        ours = [100 * value for value in run.accuracy]
        lines = [[100 * value for value in base.values] for base in bases]
        for base, line in zip(bases, lines, strict=True):
            panel.path(range(len(line)), line, base.line)
            if len(line) == 1:
                panel.canvas.dot(panel.x(0), panel.y(line[0]), f"{base.name}: {line[0]:.1f} %", base.dot)
        panel.path(range(len(ours)), ours, "line s1")
        numbered = len(run.tasks) <= (14 if width == WIDE else 6)
        for t, value in enumerate(ours):
            panel.canvas.dot(panel.x(t), panel.y(value), f"{run.tasks[t]}: {value:.1f} %", "f1")
            if numbered and t < len(ours) - 1:
                # away from the reference that is nearest
                nearest = min((line[t] for line in lines), key=lambda base: abs(base - value), default=-1.0)
                y = panel.y(value) + (-9 if value >= nearest else 19)
                canvas.text(panel.x(t), y, f"{value:.1f}", "small", "middle")
        _end_labels(panel, names, [ours, *lines])
        return canvas

    return Figure(
        "accuracy",
        "Accuracy after each task",
        "Share of right answers on the test images of all tasks learned so far, among all classes learned"
        " so far (the test grows and gets harder from left to right). Dashed: the pretrained model on the"
        " same images." + (_DOTTED if run.frozen_features else ""),
        *both(draw, prefix, "accuracy"),
        _accuracy_csv(run, seen),
    )


_DOTTED = (
    " Dotted: the strongest classifier in closed form on the pretrained model's features, which trains nothing"
    " and keeps no image."
)


def _accuracy_csv(run: RunData, seen: Sequence[int]) -> str:
    columns = ["task", "name", "classes_seen", "accuracy", "zero_shot"]
    bases = [run.zero_shot or [""] * len(run.tasks)]
    if run.frozen_features:
        columns.append("frozen_features")
        bases.append(run.frozen_features)
    rows = [
        [t + 1, run.tasks[t], seen[t], value, *(line[t] for line in bases)]
        for t, value in enumerate(run.accuracy)
    ]
    return csv_text(columns, rows)


def _classes_seen(run: RunData) -> list[int]:
    counts = [list(run.class_task.values()).count(t) for t in range(len(run.tasks))]
    return [sum(counts[: t + 1]) for t in range(len(run.tasks))]


def _percent_range(run: RunData) -> tuple[float, float]:
    values = [100 * value for value in [*run.accuracy, *run.zero_shot, *run.frozen_features]]
    low, high = 10 * math.floor(min(values) / 10 - 0.3), 10 * math.ceil(max(values) / 10 + 0.3)
    return max(0, low), min(100, high)


def _accuracy_axes(panel: Panel, run: RunData, seen: Sequence[int]) -> None:
    canvas, base = panel.canvas, panel.top + panel.height
    panel.grid(5, " %")
    canvas.line(panel.left, base, panel.left + panel.width, base, "axis")
    for tick in ticks(1, len(run.tasks), 10 if panel.width > 400 else 5):
        if tick == int(tick):
            canvas.text(panel.x(tick - 1), base + 18, f"{int(tick)}", None, "middle")
            canvas.text(panel.x(tick - 1), base + 32, f"{seen[int(tick) - 1]}", "dim small", "middle")
    canvas.text(panel.left - 38, 16, "accuracy on all classes learned so far", "dim")
    canvas.text(
        panel.left + panel.width / 2, base + 52, "tasks learned; beneath, classes learned", "dim", "middle"
    )


def _end_labels(panel: Panel, names: dict[str, str], lines: Sequence[Sequence[float]]) -> None:
    at = [panel.y(line[-1]) + 4 for line in lines]
    right = panel.left + panel.width
    for (class_, name), line, y in zip(
        names.items(), lines, spread(at, 16, panel.top + 4, panel.top + panel.height), strict=True
    ):
        x = panel.x(len(line) - 1) + 9
        # An unfinished run's line ends inside the panel, where its label may use the rest of the width.
        text = f" {line[-1]:.1f}"
        room = panel.canvas.width - (x if x < right else right + 9) - text_width(text, 12.5)
        panel.canvas.text(x, y, shorten(name, room, 12.5) + text, class_)
