"""Draw the overview's figures with lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from everclip.compare.groups import Group, Setting
from everclip.metrics.stats import Interval
from everclip.plots import accuracy
from everclip.plots.accuracy import Axis, Metric
from everclip.plots.confidence import DIAGONAL, coverage_panel, reliability_panel
from everclip.plots.panels import Panel
from everclip.plots.training import Curve, curves_panel, entropy_curve, logged, mean_curve, terms_panel
from everclip.report.figure import Figure, csv_text, grid
from everclip.runs.read import RunData
from everclip.runs.words import rivals, several

REFERENCES = (
    " Grey: zero-shot (the pretrained model), the frozen features (the best of ncm, ridge"
    " and slda on the pretrained model's features) and joint training (on all tasks at once), where available."
)
INTERVALS = (
    " Bars: 95 % intervals of the mean over seeds (Student t), cut off at the panel's edge; none"
    " with one seed."
)
AXES = {
    "memory-last": "last accuracy, images",
    "memory-average": "average accuracy, images",
    "bytes-last": "last accuracy, bytes",
    "bytes-average": "average accuracy, bytes",
}
"""The charts among which the reader chooses, by figure key."""
RANGES = " Bars: from the lowest to the highest seed, as two seeds give no interval."
_SPAN = ["seeds", "mean", "low", "high"]
GROUP = ["method", "variant", "memory"]


def against_memory(settings: Sequence[Setting], metric: Metric, against: Axis) -> Figure | None:
    """Return accuracy against exemplars or bytes; a panel per setting."""
    few = accuracy.two_seeds(settings, metric)
    panels = _some(accuracy.memory_panel(setting, metric, against, few) for setting in settings)
    if not panels:
        return None
    name = "Last" if metric == "last" else "Average"
    bars = RANGES if few else INTERVALS
    if against == "bytes":
        title, key = f"{name} accuracy against bytes kept", f"bytes-{metric}"
        caption = (
            "Accuracy in % against everything that a method keeps beside the model: its exemplar files, and"
            " its state, such as sums, statistics and copies of the model. The axis is logarithmic, with"
            " nothing kept at its left end. Methods without exemplars are not level lines here, as their"
            " state counts too."
        ) + bars
        columns = ["setting", *GROUP, "image_bytes", "state_bytes", *_SPAN]
        rows = [
            [
                setting.name,
                *named(group),
                *(round(value) for value in accuracy.bytes_of(group)),
                *numbers(span),
            ]
            for setting in settings
            for group in accuracy.sized(setting, metric)
            if (span := group.interval(metric)) is not None
        ]
    else:
        title, key = f"{name} accuracy against memory", f"memory-{metric}"
        what = "the mean of the accuracies after each task"
        if metric == "last":
            what = "after the last task on the test images of all classes"
        caption = (
            f"Accuracy in %: {what}. The memory is the number of exemplars; sizes are evenly spaced,"
            " not to scale, and methods are shifted slightly so that they do not hide each other. A level line"
            f" without markers is a method that keeps none.{bars} Pale dots: single seeds."
        )
        columns = ["setting", *GROUP, *_SPAN]
        rows = _memory_rows(settings, metric)
    caption += REFERENCES
    if metric != "last":
        caption += " Joint training has no average accuracy, as it learns in one task."
    return _lines(key, title, caption, panels, (columns, rows), "all", height=280, ends=True)


def _memory_rows(settings: Sequence[Setting], metric: Metric) -> list[list[object]]:
    rows: list[list[object]] = [
        [setting.name, *named(group), *numbers(span)]
        for setting in settings
        for group in setting.every
        if (span := group.interval(metric)) is not None
    ]
    names = {"zero-shot": "pretrained"}
    return rows + [
        [setting.name, names.get(name, name), "", "", 1, value, "", ""]
        for setting in settings
        for name, value in accuracy.pretrained(setting, metric).items()
    ]


def _lines(
    key: str,
    title: str,
    caption: str,
    panels: Sequence[Panel],
    table: tuple[list[str], list[list[object]]],
    prefix: str,
    **layout: Any,
) -> Figure:
    """Return a figure of panels with lines; ``table`` has the header and the rows of its CSV file."""
    told = f"{several(len(panels), 'panel')}; the numbers are in the CSV file."
    make = partial(grid, panels, **layout)
    return Figure(key, title, caption, told, csv_text(*table), make, prefix)


def named(group: Group) -> list[object]:
    """Return the columns ``GROUP`` of a CSV file."""
    return [group.method, group.variant, "" if group.memory is None else group.memory]


def numbers(span: Interval) -> list[object]:
    """Return the columns ``_SPAN`` of a CSV file."""
    return [span.n, *("" if value is None else round(value, 6) for value in (span.mean, span.low, span.high))]


def by_memory(setting: Setting) -> list[tuple[str, list[Group]]]:
    """Return a title and the groups of each memory size, with those without a memory."""
    found: list[tuple[str, list[Group]]] = []
    for size in setting.memories or [None]:
        groups = [group for group in setting.groups + setting.level if group.memory in (size, None)]
        found.append(("" if size is None else f"memory {size}", groups))
    return found


def _some(panels: Iterable[Panel | None]) -> list[Panel]:
    return [panel for panel in panels if panel is not None]


def aligned(panels: Sequence[Panel]) -> list[Panel]:
    """Return the panels with one vertical axis for all."""
    ys = (min((p.ys[0] for p in panels), default=0.0), max((p.ys[1] for p in panels), default=1.0))
    return [replace(panel, ys=ys) for panel in panels]


def stages(setting: Setting) -> Figure | None:
    """Return A_t of each group, one panel per memory size."""
    trained = any(group.curve and not group.reference for group in setting.every)
    if len(setting.tasks) < 2 or not trained:
        return None
    panels = aligned(
        _some(accuracy.stages_panel(setting, groups, title) for title, groups in by_memory(setting))
    )
    rows = [
        [*named(group), t + 1, *numbers(span)]
        for group in setting.every
        for t, span in enumerate(group.curve)
    ]
    for name, curve in (("pretrained", setting.zero_shot_curve), ("frozen features", setting.frozen_curve)):
        rows += [[name, "", "", t, 1, value, "", ""] for t, value in enumerate(curve, 1)]
    open_ = [group.label for group in setting.every if not group.finished and group.curve]
    caption = (
        "Accuracy in % on the test images of all tasks learned so far,"
        f" {rivals(run.task_id for run in setting.runs)}: the test set grows and, with more classes, gets harder"
        " from left to right. Means over seeds."
        + REFERENCES
        + (f" Unfinished runs, so far: {'; '.join(open_)}." if open_ else "")
    )
    table = ([*GROUP, "task", *_SPAN], rows)
    return _lines("stages", "Accuracy after each task", caption, panels, table, setting.ident, height=210)


def sure(panels: Sequence[tuple[str, Sequence[Group]]], prefix: str) -> list[Figure]:
    """Return accuracy by coverage, and reliability where probabilities were recorded; each with these panels."""
    first = "Test images after the last task"
    covered = (
        f"{first}, sorted by the margin between the best and the second-best score: accuracy among the most"
        " confident ones. A model that knows what it does not know starts near 100 %; the right end is the"
        " accuracy on all images."
    )
    reliable = (
        f"{first} in bins of the probability of their best class, all seeds together: the fraction classified"
        " correctly (bins with fewer than ten images are left out). On the diagonal probabilities are reliable;"
        " below it the model is overconfident."
    )
    titles = ("Accuracy of the most confident answers", "Reliability: probability against accuracy")
    kinds = (
        ("coverage", titles[0], covered, coverage_panel, ["share", "accuracy"]),
        ("reliability", titles[1], reliable, reliability_panel, ["probability", "accuracy", "images"]),
    )
    figures: list[Figure] = []
    for key, title, caption, make, columns in kinds:
        found = _some(make(groups, name) for name, groups in panels)
        rows: list[list[object]] = []
        lines = [(panel.title, line) for panel in found for line in panel.lines if line.name != DIAGONAL]
        for panel, line in lines:
            for k, (x, y) in enumerate(zip(line.xs, line.ys, strict=True)):
                point = (round(x / 100, 5), round((y or 0.0) / 100, 5), *line.counts[k : k + 1])
                rows.append([panel, line.name, *point])
        if found:
            table = (["panel", "group", *columns], rows)
            figures.append(_lines(key, title, caption, aligned(found), table, prefix, height=200))
    return figures


def gradient_norms(setting: Setting) -> Figure | None:
    """Return the gradient norm of each group, one panel per memory size."""
    caption = "Norm of the gradient before clipping, means over neighbouring steps and over seeds."
    return _curves(setting, "gradients", "Gradient norm", caption, logged("grad_norm"))


def weight_entropies(setting: Setting) -> Figure | None:
    """Return the entropy of the class weights over steps, one panel per memory size."""
    caption = (
        "Shannon entropy of the weights of the classes learned so far, divided by its maximum: 1 when"
        " all classes have the same weight. Means over neighbouring steps and over seeds."
    )
    return _curves(setting, "entropy", "Entropy of the class weights", caption, entropy_curve)


def _curves(
    setting: Setting, key: str, title: str, caption: str, curve_of: Callable[[RunData], Curve | None]
) -> Figure | None:
    panels = _some(curves_panel(groups, curve_of, title) for title, groups in by_memory(setting))
    if not panels:
        return None
    rows = [
        [*named(group), *point]
        for group in setting.groups + setting.level
        if not group.reference
        for point in _points(mean_curve([curve_of(run) for run in group.shown]))
    ]
    return _lines(key, title, caption, panels, ([*GROUP, "step", "value"], rows), setting.ident, height=110)


def _points(curve: Curve | None) -> list[tuple[int, float]]:
    return [(round(step), float(f"{value:.4g}")) for step, value in zip(*curve, strict=True)] if curve else []


def loss_terms(setting: Setting) -> Figure | None:
    """Return the terms of the loss, one panel per group: losses of different methods have no common scale."""
    looks: dict[str, int] = {}
    made = ((group, terms_panel(group, group.label, looks)) for group in setting.every)
    found = [(group, panel) for group, panel in made if panel is not None]
    if not found:
        return None
    caption = (
        "The terms of the loss, means over neighbouring steps and over seeds. Each panel has its own"
        " axis, as losses of different methods cannot be compared."
    )
    rows = [
        [*named(group), line.name, *point]
        for group, panel in found
        for line in panel.lines
        for point in _points((list(line.xs), [y or 0.0 for y in line.ys]))
    ]
    sizes = len(setting.memories)
    table = ([*GROUP, "term", "step", "value"], rows)
    columns = sizes if sizes in (3, 4) else 3
    panels = [panel for _, panel in found]
    return _lines("terms", "Loss terms", caption, panels, table, setting.ident, columns=columns, height=110)
