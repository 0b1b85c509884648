"""Draw what runs logged at their steps: loss terms, gradient norm, learning rate, estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from everclip.compare.groups import Group
from everclip.plots import style
from everclip.plots.panels import How, Line, Panel, extent, heights, show, span, value_range
from everclip.plots.runs import One, Runs, groups_of, name_in, nothing, run_of
from everclip.plots.text import printable, text_width
from everclip.runs.read import ClassValues, RunData, finite

MOST_POINTS = 400
"""Most steps drawn one by one; of more, means of neighbouring steps with a band of their range."""
_BINS = 60  # points of a curve of several runs, each the mean of neighbouring steps
_FAR = 0.9  # of the longest run: curves that end earlier are of runs in progress or stopped
Curve = tuple[list[float], list[float]]
"""Steps and values."""


def loss_terms(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the terms of the loss over optimizer steps; for several seeds, means over them and neighbouring steps.

    Raises:
        UserError: the runs are of several methods or memory sizes, or no step has been logged.
    """
    groups = groups_of(runs, how.get("memory"))
    if len(groups) > 1:
        raise nothing("losses of different methods have no common scale")
    return show(terms_panel(groups[0]) if groups else None, ax, how, "no training step has been logged")


def gradient_norm(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the norm of the gradient before clipping over optimizer steps. Raises UserError without any."""
    panel = curves_panel(groups_of(runs, how.get("memory")), logged("grad_norm"), "gradient norm")
    return show(panel, ax, how, "no run has logged a gradient norm")


def learning_rate(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the learning rate over optimizer steps. Raises UserError without any."""
    panel = curves_panel(groups_of(runs, how.get("memory")), logged("lr"), "learning rate")
    return show(panel, ax, how, "no run has logged a learning rate")


def weight_entropy(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the Shannon entropy of the class weights, divided by its maximum, in 0..1, over optimizer steps: 1 when all
    classes learned so far have the same weight. Raises UserError without any."""
    panel = curves_panel(groups_of(runs, how.get("memory")), entropy_curve, "entropy / its maximum")
    return show(panel, ax, how, "no run has logged class weights")


def estimators(run: One, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the mean and largest log u of each batch: moving averages of the global contrastive loss, which tell how
    strongly the negatives compete with each pair. Raises UserError without any."""
    found = run_of(run)
    values = estimator_values(found).items()
    lines = [step_line(found, key.removeprefix("log_u_"), each, k) for k, (key, each) in enumerate(values)]
    panel = steps_panel(found, lines, "log u") if lines else None
    return show(panel, ax, how, "the run has logged no estimators")


def logged(key: str, term: str | None = None) -> Callable[[RunData], Curve | None]:
    """Return a function that reads a run's curve of a logged number, or of a term of the loss."""

    def curve(run: RunData) -> Curve | None:
        found = [(step["global_step"], step[key].get(term) if term else step.get(key)) for step in run.steps]
        known = [(float(at), float(value)) for at, value in found if finite(value)]
        return ([at for at, _ in known], [value for _, value in known]) if known else None

    return curve


def entropy_curve(run: RunData) -> Curve | None:
    """Return the ``entropy`` of each record of class weights."""
    if not (records := run.class_weights):
        return None
    return [float(one.step) for one in records], [entropy(shares(one)) for one in records]


def shares(weights: ClassValues) -> ClassValues:
    """Return the weights scaled to sum to one."""
    total, uniform = math.fsum(weights.values.values()), 1 / len(weights.values)
    values = {name: value / total if total > 0 else uniform for name, value in weights.values.items()}
    return ClassValues(weights.step, weights.stage, values)


def entropy(of: ClassValues) -> float:
    """Return the Shannon entropy of shares, divided by its largest value: in 0..1."""
    if len(of.values) < 2:
        return 1.0
    return -math.fsum(p * math.log(p) for p in of.values.values() if p > 0) / math.log(len(of.values))


def mean_curve(curves: Sequence[Curve | None]) -> Curve | None:
    """Return the mean over runs and neighbouring steps, without runs that are far behind the longest.

    Runs of different lengths, as with class orders by the seed, are interpolated at the longest one's steps.
    """
    known = [_thinned(curve) for curve in curves if curve is not None]
    if not known:
        return None
    steps = max((steps for steps, _ in known), key=lambda steps: (steps[-1], len(steps)))
    alike = [np.interp(steps, *curve) for curve in known if curve[0][-1] >= _FAR * steps[-1]]
    return steps, [float(value) for value in np.mean(alike, axis=0)]


def _thinned(curve: Curve) -> Curve:
    parts = np.array_split(np.array(curve).T, min(_BINS, len(curve[0])))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T.tolist()
    return steps, values


def curves_panel(
    groups: Sequence[Group], curve_of: Callable[[RunData], Curve | None], title: str = ""
) -> Panel | None:
    """Return the mean curve of each group except references; None where nothing was logged."""
    lines = [
        Line(name_in(group, groups), group.look, *curve, settings={"marker": ""})
        for group in groups
        if not group.reference and (curve := mean_curve([curve_of(run) for run in group.shown])) is not None
    ]
    return _panel(lines, title) if lines else None


def terms_panel(group: Group, title: str = "", looks: dict[str, int] | None = None) -> Panel | None:
    """Return the mean curve of each term of a group's loss; share ``looks`` between panels for the same colours."""
    looks = {} if looks is None else looks
    terms = dict.fromkeys(term for run in group.shown for step in run.steps for term in step["loss"])
    lines: list[Line] = []
    for term in terms:
        curve = mean_curve([logged("loss", term)(run) for run in group.shown])
        if curve is not None:
            look = looks.setdefault(term, len(looks))
            lines.append(Line(term, look, *curve, settings={"marker": ""}))
    return _panel(lines, title) if lines else None


def _panel(lines: Sequence[Line], title: str) -> Panel:
    steps = [x for line in lines for x in line.xs]
    xs, ys = span((min(steps), max(steps))), value_range(heights(lines))
    return Panel(lines, xs, ys, "optimizer step", title=title)


def estimator_values(run: RunData) -> dict[str, list[object]]:
    """Return the mean and largest log u of each step, by their keys in the log; empty where none was logged."""
    told = [found if isinstance(found := step.get("diagnostics"), dict) else {} for step in run.steps]
    values: dict[str, list[object]] = {
        key: [found.get(key) for found in told] for key in ("log_u_mean", "log_u_max")
    }
    return {key: found for key, found in values.items() if any(map(finite, found))}


def step_line(run: RunData, name: str, values: Sequence[object], second: int) -> Line:
    """Return a curve of a run, with gaps where tasks begin; ``second`` is 1 for the colour of a second curve."""
    steps = [int(step["global_step"]) for step in run.steps]
    looks = {"color": (style.FIRST, style.SECOND)[second], "linestyle": "-", "marker": "", "linewidth": 1.4}
    if len(steps) > MOST_POINTS:
        chunks = np.array_split(np.arange(len(steps)), MOST_POINTS)
        bins = [[value for k in chunk if finite(value := values[k])] for chunk in chunks]
        xs = [steps[int(chunk[len(chunk) // 2])] for chunk in chunks]
        means = [sum(inside) / len(inside) if inside else None for inside in bins]
        band = [min(inside) for inside in bins if inside], [max(inside) for inside in bins if inside]
        return Line(name, 0, xs, means, settings=looks, band=band)
    known = [float(value) if finite(value) else None for value in values]
    return Line(name, 0, *broken(steps, known, [step["stage"] for step in run.steps]), settings=looks)


def broken(
    steps: Sequence[float], values: Sequence[float | None], stages: Sequence[int]
) -> tuple[list[float], list[float | None]]:
    """Return a curve with a gap where a stage begins."""
    xs: list[float] = []
    ys: list[float | None] = []
    for k, (x, y) in enumerate(zip(steps, values, strict=True)):
        if k and stages[k] != stages[k - 1]:
            xs.append(x)
            ys.append(None)
        xs.append(x)
        ys.append(y)
    return xs, ys


def steps_panel(run: RunData, lines: Sequence[Line], title: str) -> Panel:
    """Return lines over the steps of a run; a single line with values far above its median is logarithmic."""
    values = heights(lines) or [0.0, 1.0]
    low, high = min(values), max(values)
    log = len(lines) == 1 and low > 0 and high > 30 * float(np.median(values))
    ys = (low, high) if log else value_range(values)
    steps = [int(step["global_step"]) for step in run.steps]
    return Panel(lines, span((min(steps), max(steps))), ys, "optimizer step", log=log, title=title)


def task_borders(run: RunData, ax: Axes, above: float | None = 8.0) -> None:
    """Draw a line where each task begins, with its name, or number, ``above`` points over it where it fits."""
    low, high = ax.get_xlim()
    points = extent(ax)[0] / (high - low)
    edges = [*(step for _, step in run.borders), high]
    for (stage, _), step, following in zip(run.borders, edges, edges[1:], strict=False):
        if stage:
            ax.axvline(step, color=style.EDGE, linewidth=1)
        name = run.tasks[stage] if stage < len(run.tasks) else f"task {stage + 1}"
        room = (following - step) * points - 4
        text = next((word for word in (printable(name), f"{stage + 1}") if text_width(word) < room), "")
        if text and above is not None:
            where = {"xy": ((step + following) / 2, 1), "xycoords": ax.get_xaxis_transform()}
            where |= {"xytext": (0, above), "textcoords": "offset points"}
            ax.annotate(text, ha="center", color=style.DIM, parse_math=False, **where)
