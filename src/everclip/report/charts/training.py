"""Draw what groups logged at each step, side by side: gradient norms, loss terms, entropy of the class weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from everclip.report.charts.canvas import Figure, both, csv_text, ticks, value_range
from everclip.report.charts.plots import Line, Plot, Plots
from everclip.report.charts.weights import entropies
from everclip.report.groups import Group, Memory, Setting
from everclip.report.read import Json, RunData, finite

_BINS = 60  # points of a curve, each the mean of neighbouring steps
Curve = tuple[list[float], list[float]]  # steps, values


def gradient_norms(setting: Setting) -> Figure | None:
    """The gradient norm of each group, one panel per memory size."""
    return _by_memory(
        setting,
        "gradients",
        "Gradient norm",
        "Length of the gradient before it is clipped, means over neighbouring steps and over seeds.",
        lambda run: _binned(run, lambda step: step.get("grad_norm")),
    )


def weight_entropies(setting: Setting) -> Figure | None:
    """The entropy of the class weights over steps, one panel per memory size."""
    return _by_memory(
        setting,
        "entropy",
        "Entropy of the class weights",
        "Shannon entropy of the weights of the classes learned so far, divided by its maximum: 1 when all classes weigh"
        " the same. Means over neighbouring steps and over seeds.",
        _entropy,
    )


def loss_terms(setting: Setting) -> Figure | None:
    """The terms of the loss, one panel per group: different methods' losses are no common scale."""
    names: dict[str, int] = {}
    plots: list[Plot] = []
    rows: list[list[object]] = []
    for group in setting.every:
        terms = dict.fromkeys(term for run in group.shown for step in run.steps for term in step["loss"])
        lines: list[Line] = []
        for term in terms:
            curve = _mean(
                [_binned(run, lambda step, term=term: step["loss"].get(term)) for run in group.shown]
            )
            if curve is not None:
                lines.append(Line(term, names.setdefault(term, len(names)), *curve, marked=False))
                rows += [
                    [group.method, group.variant, _memory(group), term, *point] for point in _points(curve)
                ]
        if lines:
            plots.append(_plot(group.label, lines))
    sizes = len(setting.memories)
    return _figure(
        setting,
        "terms",
        "Loss terms",
        "The terms that are added up to the loss, means over neighbouring steps and over seeds. Each panel has an axis"
        " of its own: losses of different methods cannot be compared.",
        plots,
        (["method", "variant", "memory", "term", "step", "value"], rows),
        columns=sizes if sizes in (3, 4) else 3,
    )


def _by_memory(
    setting: Setting, key: str, title: str, caption: str, curve_of: Callable[[RunData], Curve | None]
) -> Figure | None:
    sizes: list[Memory] = [*setting.memories] or [None]
    plots: list[Plot] = []
    rows: list[list[object]] = []
    for size in sizes:
        lines: list[Line] = []
        for group in setting.groups + setting.level:
            curve = _mean([curve_of(run) for run in group.shown]) if group.memory in (size, None) else None
            if curve is not None and not group.reference:
                lines.append(Line(group.series, group.look, *curve, marked=False))
                rows += [[group.method, group.variant, _memory(group), *point] for point in _points(curve)]
        if lines:
            plots.append(_plot("" if size is None else f"memory {size}", lines))
    return _figure(
        setting, key, title, caption, plots, (["method", "variant", "memory", "step", "value"], rows)
    )


def _figure(
    setting: Setting,
    key: str,
    title: str,
    caption: str,
    plots: Sequence[Plot],
    table: tuple[list[str], list[list[object]]],
    columns: int = 3,
) -> Figure | None:
    if not plots:
        return None
    description = f"{len(plots)} panels; the numbers are in the CSV file."
    chart = Plots(title, description, plots, columns, height=110)
    return Figure(key, title, caption, *both(chart.draw, setting.ident, key), csv_text(*table))


def _plot(title: str, lines: Sequence[Line]) -> Plot:
    steps = [x for line in lines for x in line.xs]
    ends = (min(steps), max(steps))
    values = [y for line in lines for y in line.ys if y is not None]
    return Plot(
        title, lines, ends, value_range(values), [(x, f"{x:g}") for x in ticks(*ends, 4)], "optimizer step"
    )


def _memory(group: Group) -> object:
    return "" if group.memory is None else group.memory


def _points(curve: Curve) -> list[tuple[int, float]]:
    return [(round(step), float(f"{value:.4g}")) for step, value in zip(*curve, strict=True)]


def _binned(run: RunData, number: Callable[[Json], object]) -> Curve | None:
    """Means of a logged number over neighbouring steps; None where it was never logged."""
    found = [(int(step["global_step"]), float(value)) for step in run.steps if finite(value := number(step))]
    return _thin(found)


def _entropy(run: RunData) -> Curve | None:
    return _thin(list(zip((record.step for record in run.class_weights), entropies(run), strict=True)))


def _thin(found: Sequence[tuple[int, float]]) -> Curve | None:
    if not found:
        return None
    parts = np.array_split(np.array(found, dtype=np.float64), min(_BINS, len(found)))
    steps, values = zip(*(part.mean(axis=0).tolist() for part in parts), strict=True)
    return list(steps), list(values)


def _mean(curves: Sequence[Curve | None]) -> Curve | None:
    """The mean over runs; of an unfinished group the run that has come furthest."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    steps = max((steps for steps, _ in known), key=lambda steps: (steps[-1], len(steps)))
    alike = [values for other, values in known if len(other) == len(steps) and other[-1] == steps[-1]]
    return steps, [float(value) for value in np.mean(alike, axis=0)]
