"""Draw what the log has of every step, as line charts one above the other: loss, estimators of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from everclip.report.charts.canvas import (
    WIDE,
    Canvas,
    Figure,
    Panel,
    both,
    csv_text,
    number,
    text_width,
    value_range,
)
from everclip.report.charts.steps import step_axis, task_borders
from everclip.report.read import Json, RunData, finite

_MOST_POINTS = 400  # longer curves are drawn as bin means with a minimum-maximum band
_PANEL = 132.0  # px from one panel to the next


class _Line(NamedTuple):
    """A curve; ``column`` names it in the CSV file, ``label`` beside others in the same panel."""

    column: str
    label: str
    values: list[float | None]  # one per step


def curves(run: RunData, prefix: str) -> Figure | None:
    """Loss terms, gradient norm and learning rate over steps, one panel each."""
    series: dict[str, list[object]] = {}
    for name in dict.fromkeys(term for step in run.steps for term in step["loss"]):
        series[f"loss: {name}"] = [step["loss"].get(name) for step in run.steps]
    for key, label in (("grad_norm", "gradient norm"), ("lr", "learning rate")):
        if any(key in step for step in run.steps):
            series[label] = [step.get(key) for step in run.steps]
    panels = {name: [_Line(name, "", _known(values))] for name, values in series.items()}
    title = "Loss, gradient norm and learning rate"
    return _stack(run, prefix, "curves", title, panels, "Vertical lines: a new task begins.")


def estimators(run: RunData, prefix: str) -> Figure | None:
    """Mean and maximum over the batch of log u, the moving averages of the global contrastive loss."""
    lines = [
        _Line(
            f"log_u_{label}", label, _known([_diagnostics(step).get(f"log_u_{label}") for step in run.steps])
        )
        for label in ("mean", "max")
    ]
    lines = [line for line in lines if any(value is not None for value in line.values)]
    return _stack(
        run,
        prefix,
        "estimators",
        "Estimators of the global contrastive loss",
        {"log u": lines} if lines else {},
        "For each image and its text the loss keeps moving averages u of how strongly the negatives compete"
        " with the pair: the lower log u, the better the pair stands out. Shown are the mean and the largest"
        " value of each batch; a largest value far above the mean comes from a few hard pairs.",
    )


def _diagnostics(step: Json) -> Json:
    found = step.get("diagnostics")
    return found if isinstance(found, dict) else {}


def _known(values: Sequence[object]) -> list[float | None]:
    return [value if finite(value) else None for value in values]


def _stack(
    run: RunData, prefix: str, key: str, title: str, panels: dict[str, list[_Line]], caption: str
) -> Figure | None:
    """``panels`` by title, one above the other over the steps; None without any."""
    if not panels:
        return None
    steps = [int(step["global_step"]) for step in run.steps]
    lift = {k for k in range(1, len(steps)) if run.steps[k]["stage"] != run.steps[k - 1]["stage"]}
    foot = 34 + _PANEL * len(panels) - 14

    def draw(width: float, ident: str) -> Canvas:
        canvas = Canvas(
            width,
            foot + 42,
            ident=ident,
            title=title,
            description=f"{', '.join(panels)} over {len(steps)} recorded steps.",
        )
        left = 56 if width == WIDE else 46
        task_borders(run, canvas, left, width - left - 14, (steps[0], steps[-1]), 34, foot)
        for row, (name, lines) in enumerate(panels.items()):
            _panel(canvas, (left, 34.0 + _PANEL * row), name, steps, lines, lift)
        step_axis(canvas, left, width - left - 14, (steps[0], steps[-1]), foot)
        return canvas

    thin = math.ceil(len(steps) / 1000)
    lines = [line for panel in panels.values() for line in panel]
    rows = [
        [
            step,
            run.steps[k]["stage"] + 1,
            *("" if (v := line.values[k]) is None else f"{v:.5g}" for line in lines),
        ]
        for k, step in enumerate(steps)
        if k % thin == 0
    ]
    return Figure(
        key,
        title,
        caption
        + (" Lines are means of neighbouring steps, bands their range." if len(steps) > _MOST_POINTS else "")
        + (f" The CSV file has every {thin}th step; metrics.jsonl has all." if thin > 1 else ""),
        *both(draw, prefix, key),
        csv_text(["step", "task", *(line.column for line in lines)], rows),
    )


def _panel(
    canvas: Canvas,
    corner: tuple[float, float],
    name: str,
    steps: Sequence[int],
    lines: Sequence[_Line],
    lift: set[int],
) -> None:
    """One panel: a line, or two in different colours with their names."""
    left, top = corner
    known = [value for line in lines for value in line.values if value is not None]
    canvas.text(left, top + 10, name, "strong halo")
    if not known:
        canvas.text(left, top + 40, "no finite value", "dim")
        return
    low, high = min(known), max(known)
    log = len(lines) == 1 and low > 0 and high > 30 * float(np.median(known))
    ys = (low, high) if log else value_range(known)
    panel = Panel(canvas, left, top + 18, canvas.width - left - 14, 96, (steps[0], steps[-1]), ys, log)
    panel.grid(3)
    _last_values(canvas, top + 10, lines, ", log scale" if log else "")
    for k, line in reversed(list(enumerate(lines, 1))):
        _curve(panel, steps, line.values, k, lift)


def _last_values(canvas: Canvas, y: float, lines: Sequence[_Line], more: str) -> None:
    """The end of each curve in numbers at the right edge, which is the key to the colours where there are
    several."""
    right = canvas.width - 14
    for k, line in reversed(list(enumerate(lines, 1))):
        last = next(value for value in reversed(line.values) if value is not None)
        text = f"{line.label or 'last'} {number(last)}{more}"
        canvas.text(right, y, text, f"c{k} halo" if line.label else "dim halo", "end")
        right -= text_width(text, 13) + 12


def _curve(
    panel: Panel, steps: Sequence[int], values: Sequence[float | None], colour: int, lift: set[int]
) -> None:
    if len(steps) <= _MOST_POINTS:
        panel.path(steps, values, f"thin s{colour}", lift)
        return
    xs, bins = [], []
    for chunk in np.array_split(np.arange(len(steps)), _MOST_POINTS):
        inside = [value for k in chunk if (value := values[k]) is not None]
        xs.append(steps[int(chunk[len(chunk) // 2])])
        bins.append(inside)
    filled = [k for k, inside in enumerate(bins) if inside]
    low, high = [min(bins[k]) for k in filled], [max(bins[k]) for k in filled]
    panel.band([xs[k] for k in filled], low, high, f"f{colour}")
    panel.path(xs, [sum(inside) / len(inside) if inside else None for inside in bins], f"thin s{colour}")
