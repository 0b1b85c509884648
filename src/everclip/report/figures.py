"""The charts of the report page, each drawn twice: wide for a desk or paper, narrow for a phone.

A figure function takes a run and returns None where the run has nothing to draw yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from everclip.report.matrix_figure import matrix
from everclip.report.read import RunData
from everclip.report.svg import (
    WIDE,
    Canvas,
    Figure,
    Panel,
    both,
    csv_address,
    number,
    shorten,
    spread,
    step_axis,
    task_borders,
    text_width,
    ticks,
)
from everclip.report.weights_figure import class_weights

_MOST_POINTS = 400  # longer curves are drawn as bin means with a minimum-maximum band


def figures(run: RunData, prefix: str) -> dict[str, Figure]:
    """All figures that ``run`` has data for, by key; ``prefix`` keeps the ids of several runs apart."""
    drawn = (make(run, prefix) for make in (accuracy, matrix, class_weights, curves))
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
        csv_address(["task", "name", "classes_seen", "accuracy", "zero_shot"], rows),
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


def curves(run: RunData, prefix: str) -> Figure | None:
    """Loss terms, gradient norm and learning rate over steps, one panel each."""
    series: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(term for step in run.steps for term in step["loss"]):
        series[f"loss: {name}"] = [_finite(step["loss"].get(name)) for step in run.steps]
    for key, label in (("grad_norm", "gradient norm"), ("lr", "learning rate")):
        if any(key in step for step in run.steps):
            series[label] = [_finite(step.get(key)) for step in run.steps]
    if not series:
        return None
    steps = [int(step["global_step"]) for step in run.steps]
    lift = {k for k in range(1, len(steps)) if run.steps[k]["stage"] != run.steps[k - 1]["stage"]}

    def draw(width: float, ident: str) -> Canvas:
        canvas = Canvas(
            width,
            34 + 132 * len(series) + 28,
            ident=ident,
            title="Loss, gradient norm and learning rate",
            description=f"{', '.join(series)} over {len(steps)} recorded steps.",
        )
        left = 56 if width == WIDE else 46
        foot = 34 + 132 * len(series) - 14
        task_borders(run, canvas, left, width - left - 14, (steps[0], steps[-1]), 34, foot)
        for row, (name, values) in enumerate(series.items()):
            _curve(canvas, (left, 34.0 + 132 * row), name, steps, values, lift)
        step_axis(canvas, left, width - left - 14, (steps[0], steps[-1]), foot)
        return canvas

    thin = math.ceil(len(steps) / 1000)
    rows = [
        [step, run.steps[k]["stage"] + 1, *("" if v[k] is None else f"{v[k]:.5g}" for v in series.values())]
        for k, step in enumerate(steps)
        if k % thin == 0
    ]
    return Figure(
        "curves",
        "Loss, gradient norm and learning rate",
        "Vertical lines: a new task begins."
        + (" Lines are means of neighbouring steps, bands their range." if len(steps) > _MOST_POINTS else "")
        + (f" The CSV file has every {thin}th step; metrics.jsonl has all." if thin > 1 else ""),
        *both(draw, prefix, "curves"),
        csv_address(["step", "task", *series], rows),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _curve(
    canvas: Canvas,
    corner: tuple[float, float],
    name: str,
    steps: Sequence[int],
    values: Sequence[float | None],
    lift: set[int],
) -> None:
    left, top = corner
    known = [value for value in values if value is not None]
    canvas.text(left, top + 10, name, "strong halo")
    if not known:
        canvas.text(left, top + 40, "no finite value", "dim")
        return
    low, high = min(known), max(known)
    log = low > 0 and high > 30 * float(np.median(known))
    if not log:
        low = 0.0 if 0 < low < 0.5 * high else low
        low, high = (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
    panel = Panel(
        canvas, left, top + 18, canvas.width - left - 14, 96, (steps[0], steps[-1]), (low, high), log
    )
    panel.grid(3)
    last = f"last {number(known[-1])}" + (", log scale" if log else "")
    canvas.text(canvas.width - 14, top + 10, last, "dim halo", "end")
    if len(steps) <= _MOST_POINTS:
        panel.path(steps, values, "thin s1", lift)
        return
    xs, bins = [], []
    for chunk in np.array_split(np.arange(len(steps)), _MOST_POINTS):
        inside = [value for k in chunk if (value := values[k]) is not None]
        xs.append(steps[int(chunk[len(chunk) // 2])])
        bins.append(inside)
    filled = [k for k, inside in enumerate(bins) if inside]
    panel.band([xs[k] for k in filled], [min(bins[k]) for k in filled], [max(bins[k]) for k in filled])
    panel.path(xs, [sum(inside) / len(inside) if inside else None for inside in bins], "thin s1")
