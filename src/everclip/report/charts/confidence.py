"""Draw how sure a model is: accuracy of its surest answers, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from everclip.report.charts.canvas import Figure, both, csv_text
from everclip.report.charts.memory_sizes import JOINT, reference
from everclip.report.charts.plots import Line, Plot, Plots, aligned, around
from everclip.report.groups import Group, Memory, Setting
from everclip.report.predictions import coverage, predictions, reliability
from everclip.report.read import RunData

_PLACES = 20
_FEWEST = 10  # images of a bin that is drawn
Named = tuple[str, int | None, Sequence[RunData]]  # name, look (None for a reference), runs to average


def sure_figures(panels: Sequence[tuple[str, Sequence[Named]]], prefix: str) -> list[Figure]:
    """Accuracy by coverage and, where probabilities were recorded, reliability; a panel each, its lines named."""
    return [figure for make in (_coverage, _reliability) if (figure := make(panels, prefix)) is not None]


def of_setting(setting: Setting) -> list[Figure]:
    """The figures of a setting's groups, one panel per memory size."""
    sizes: list[Memory] = [*setting.memories] or [None]
    panels = [
        (
            "" if size is None else f"memory {size}",
            [_named(group) for group in setting.groups + setting.level if group.memory in (size, None)],
        )
        for size in sizes
    ]
    return sure_figures([(title, [n for n in named if n[2]]) for title, named in panels], setting.ident)


def _named(group: Group) -> Named:
    if group.reference:
        return reference(group), None, group.finished
    return group.series, group.look, group.finished


def _dash(name: str) -> str:
    return "dots" if name.startswith(JOINT) else "dash"


def _coverage(panels: Sequence[tuple[str, Sequence[Named]]], prefix: str) -> Figure | None:
    xs = [100 * k / _PLACES for k in range(1, _PLACES + 1)]
    rows: list[list[object]] = []
    plots: list[Plot] = []
    for title, named in panels:
        lines: list[Line] = []
        for name, look, runs in named:
            curves = [coverage(found, _PLACES) for run in runs if (found := predictions(run)) is not None]
            if curves:
                ys = [100 * float(y) for y in np.mean(curves, axis=0)]
                lines.append(Line(name, look, xs, ys, marked=False, dash=_dash(name)))
                rows += [[title, name, x / 100, round(y / 100, 5)] for x, y in zip(xs, ys, strict=True)]
        if lines:
            ys = around([y for line in lines for y in line.ys if y is not None])
            ticks = [(x, f"{x} %") for x in (0, 25, 50, 75, 100)]
            plots.append(
                Plot(title, lines, (0, 100), ys, ticks, "share of the images, the surest first", " %")
            )
    if not plots:
        return None
    title = "Accuracy of the surest answers"
    chart = Plots(title, f"{len(plots)} panels; the numbers are in the CSV file.", aligned(plots), height=180)
    return Figure(
        "coverage",
        title,
        "Test images after the last task, sorted by how far the best class's score is above the second: the accuracy"
        " among the surest ones. A model that knows what it does not know starts near 100 %; at the right end stands"
        " the accuracy of all images.",
        *both(chart.draw, prefix, "coverage"),
        csv_text(["panel", "group", "share", "accuracy"], rows),
    )


def _reliability(panels: Sequence[tuple[str, Sequence[Named]]], prefix: str) -> Figure | None:
    rows: list[list[object]] = []
    plots: list[Plot] = []
    for title, named in panels:
        lines = [Line("as sure as right", None, (0, 100), (0, 100), dash="")]
        for name, look, runs in named:
            bins = reliability([found for run in runs if (found := predictions(run)) is not None])
            bins = [inside for inside in bins if inside.images >= _FEWEST]
            if bins:
                xs, ys = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
                tips = [f"{name}: {b.images} images, {100 * b.accuracy:.0f} % right" for b in bins]
                lines.append(Line(name, look, xs, ys, tips=tips, dash=_dash(name)))
                rows += [[title, name, round(b.confidence, 5), round(b.accuracy, 5), b.images] for b in bins]
        if len(lines) > 1:
            ticks = [(x, f"{x} %") for x in (0, 25, 50, 75, 100)]
            plots.append(
                Plot(title, lines, (0, 100), (0, 100), ticks, "probability that the model gives", " %")
            )
    if not plots:
        return None
    title = "Reliability: probability against accuracy"
    chart = Plots(title, f"{len(plots)} panels; the numbers are in the CSV file.", plots, height=230)
    return Figure(
        "reliability",
        title,
        "Test images after the last task in bins of the probability of their best class, all seeds together: the share"
        " that is right (bins of fewer than ten images are left out). On the straight line probabilities can be"
        " believed; below it the model is too sure.",
        *both(chart.draw, prefix, "reliability"),
        csv_text(["panel", "group", "probability", "accuracy", "images"], rows),
    )
