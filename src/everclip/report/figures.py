"""The charts of the report page, each drawn twice: wide for a desk or paper, narrow for a phone.

A figure function takes a run and returns None where the run has nothing to draw yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from everclip.report.curves_figure import curves, estimators
from everclip.report.losses_figure import class_losses
from everclip.report.matrix_figure import matrix
from everclip.report.read import RunData
from everclip.report.svg import (
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
from everclip.report.weights_figure import class_weights


def figures(run: RunData, prefix: str) -> dict[str, Figure]:
    """All figures that ``run`` has data for, by key; ``prefix`` keeps the ids of several runs apart."""
    kinds = (accuracy, matrix, class_weights, class_losses, curves, estimators)
    drawn = (make(run, prefix) for make in kinds)
    return {figure.key: figure for figure in drawn if figure is not None}


def accuracy(run: RunData, prefix: str) -> Figure | None:
    """A_t of the run against A_t of the pretrained model."""
    if not run.accuracy:
        return None
    method = str(run.fact("method") or "run")
    seen = _classes_seen(run)

    def draw(width: float, ident: str) -> Canvas:
        canvas = Canvas(
            width,
            330,
            ident=ident,
            title="Accuracy after each task",
            description=f"{method} ends at {100 * run.accuracy[-1]:.1f} % after {len(run.accuracy)} tasks."
            + (
                f" Zero-shot there: {100 * run.zero_shot[len(run.accuracy) - 1]:.1f} %."
                if run.zero_shot
                else ""
            ),
        )
        names = {"c1": method, "c2": "zero-shot"} if run.zero_shot else {"c1": method}
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
        base = [100 * value for value in run.zero_shot]
        if base:
            panel.path(range(len(base)), base, "line s2 dash")
            if len(base) == 1:
                panel.canvas.dot(panel.x(0), panel.y(base[0]), f"zero-shot: {base[0]:.1f} %", "f2")
        panel.path(range(len(ours)), ours, "line s1")
        numbered = len(run.tasks) <= (14 if width == WIDE else 6)
        for t, value in enumerate(ours):
            panel.canvas.dot(panel.x(t), panel.y(value), f"{run.tasks[t]}: {value:.1f} %", "f1")
            if numbered and t < len(ours) - 1:
                above = not base or value >= base[t]
                canvas.text(
                    panel.x(t), panel.y(value) + (-9 if above else 19), f"{value:.1f}", "small", "middle"
                )
        _end_labels(panel, names, [ours, base] if base else [ours])
        return canvas

    rows = [
        [t + 1, run.tasks[t], seen[t], value, run.zero_shot[t] if run.zero_shot else ""]
        for t, value in enumerate(run.accuracy)
    ]
    return Figure(
        "accuracy",
        "Accuracy after each task",
        "Share of right answers on the test images of all tasks learned so far, among all classes learned"
        " so far (the test grows and gets harder from left to right). Dashed: the pretrained model on the"
        " same images.",
        *both(draw, prefix, "accuracy"),
        csv_text(["task", "name", "classes_seen", "accuracy", "zero_shot"], rows),
    )


def _classes_seen(run: RunData) -> list[int]:
    counts = [list(run.class_task.values()).count(t) for t in range(len(run.tasks))]
    return [sum(counts[: t + 1]) for t in range(len(run.tasks))]


def _percent_range(run: RunData) -> tuple[float, float]:
    values = [100 * value for value in [*run.accuracy, *run.zero_shot]]
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
