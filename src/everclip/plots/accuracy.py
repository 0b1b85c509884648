"""Draw accuracy against memory and after each task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Unpack, get_args

from matplotlib.axes import Axes

from everclip.compare.groups import Group, Setting, mean
from everclip.errors import UserError, check_choice
from everclip.metrics.stats import Interval, interval
from everclip.plots.panels import How, Line, Panel, around, heights, show
from everclip.plots.runs import Runs, groups_of, name_in, setting_of
from everclip.runs.words import percent, several, size

ZERO_SHOT, FROZEN, JOINT = "zero-shot", "frozen features", "joint"
Metric = Literal["last", "average"]
Axis = Literal["images", "bytes"]
_DASHED = {ZERO_SHOT: "--", FROZEN: "-."}
_JOINT_DASHES = (":", (0, (1, 4)), (0, (5, 1, 1, 1)))
"""Of joint training, which may have several variants."""


def accuracy_against_memory(
    runs: Runs,
    ax: Axes | None = None,
    *,
    metric: Metric = "last",
    against: Axis = "images",
    **how: Unpack[How],
) -> Axes:
    """Draw the accuracy of each method at each memory size, in %, beside methods without a memory.

    Means over seeds with 95 % intervals (Student t), or ranges of the seeds where a group has two, and single seeds as
    pale dots. Grey: zero-shot, the frozen features and joint training, where measured.

    Args:
        metric: ``last`` (after the last task) or ``average`` (mean of the accuracies after each task).
        against: exemplars (``images``, evenly spaced), or bytes of exemplars and state together (logarithmic).

    Raises:
        UserError: the runs cannot be compared, none with exemplars has finished, or ``memory`` is given.
    """
    if "memory" in how:
        raise UserError(
            "accuracy_against_memory draws every memory: leave memory out, or use after_each_task"
        )
    check_choice("metric", metric, get_args(Metric))
    check_choice("against", against, get_args(Axis))
    panel = memory_panel(setting_of(runs), metric, against)
    return show(panel, ax, how, "no run with exemplars has finished")


def after_each_task(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw A_t, the accuracy in % on all classes learned so far, after each task; means over seeds.

    Unfinished runs are drawn up to their last task. Grey: zero-shot, the frozen features and joint training.

    Raises:
        UserError: the runs cannot be compared, or no task has been learned.
    """
    setting = setting_of(runs)
    panel = stages_panel(setting, groups_of(setting, how.get("memory")))
    return show(panel, ax, how, "no task has been learned")


def two_seeds(settings: Iterable[Setting], metric: str) -> bool:
    """Return whether some group with meaningful bars has two seeds, so that bars are ranges.

    References have no bars, and where every seed gives the same there is nothing to range over.
    """
    groups = (group for setting in settings for group in setting.every)
    return any(len(g.values(metric)) == 2 for g in groups if g.random and not g.reference)


def memory_panel(setting: Setting, metric: Metric, against: Axis, few: bool | None = None) -> Panel | None:
    """Return the panel of ``accuracy_against_memory``; None where no run has finished.

    Args:
        few: draw ranges of seeds as bars; None: where a group has two seeds.
    """
    few = two_seeds([setting], metric) if few is None else few
    make = _by_images if against == "images" else _by_bytes
    made = make(setting, metric, few)
    if made is None:
        return None
    ends, ticks, lines, xlabel = made
    lines = [*references(setting, metric, ends), *lines]
    ys, ylabel = around(heights(lines)), f"{metric} accuracy"
    return Panel(lines, ends, ys, xlabel, ylabel, ticks, " %", title=setting.name)


_Made = tuple[tuple[float, float], list[tuple[float, str]], list[Line], str]


def _by_images(setting: Setting, metric: Metric, few: bool) -> _Made | None:
    groups = [group for group in setting.groups if group.interval(metric) is not None]
    sizes = [size for size in setting.memories if any(group.memory == size for group in groups)]
    if not sizes:
        return None
    ends = (-0.45, len(sizes) - 0.55)
    lines: list[Line] = []
    for group in setting.level:
        span = group.interval(metric)
        if span is not None and not group.reference:
            ys, bars = [100 * span.mean] * 2, [None, _span(group, metric, few)]
            lines.append(Line(group.series, group.look, ends, ys, bars, settings={"marker": ""}))
    series = list(dict.fromkeys(group.series for group in groups))
    for k, name in enumerate(series):
        apart = (k - (len(series) - 1) / 2) * min(0.12, 0.5 / len(series))
        members = sorted((g for g in groups if g.series == name), key=lambda group: sizes.index(group.memory))
        lines.append(_memory_line(members, metric, [sizes.index(g.memory) + apart for g in members], few))
    ticks = [(float(k), str(size)) for k, size in enumerate(sizes)]
    return ends, ticks, lines, "images kept in memory"


def _by_bytes(setting: Setting, metric: Metric, few: bool) -> _Made | None:
    groups = sized(setting, metric)
    kept = [sum(bytes_of(group)) for group in groups]
    some = [math.log10(value) for value in kept if value > 0]
    if not some:
        return None
    first, last = math.floor(min(some)), math.ceil(max(some))
    ticks = [(float(power), size(10.0**power).replace(".0", "")) for power in range(first, last + 1)]
    if 0 in kept:
        ticks.insert(0, (first - 1.0, "0"))
    lines: list[Line] = []
    for name in dict.fromkeys(group.series for group in groups):
        members = sorted((group for group in groups if group.series == name), key=lambda g: sum(bytes_of(g)))
        values = [sum(bytes_of(group)) for group in members]
        xs = [math.log10(value) if value > 0 else first - 1.0 for value in values]
        lines.append(_memory_line(members, metric, xs, few))
    start = ticks[0][0]
    return (start - 0.15, max(last, start + 1) + 0.15), ticks, lines, "bytes of images + state"


def sized(setting: Setting, metric: str) -> list[Group]:
    """Return the groups, except references, that have the metric and have recorded the bytes they keep."""
    known = [group for group in setting.every if group.values(metric) and group.values("kept_bytes")]
    return [group for group in known if not group.reference]


def bytes_of(group: Group) -> tuple[float, float]:
    """Return the mean bytes of exemplars and of the method's state over seeds."""
    images, state = group.interval("memory_bytes"), group.interval("state_bytes")
    return (images.mean if images else 0.0), (state.mean if state else 0.0)


def pretrained(setting: Setting, metric: str) -> dict[str, float]:
    """Return the accuracy of zero-shot and of the frozen features, where measured."""
    if metric == "last":
        known = {ZERO_SHOT: setting.zero_shot, FROZEN: setting.frozen_features}
    else:
        known = {name: mean(curve) for name, curve in _curves(setting).items()}
    return {name: value for name, value in known.items() if value is not None}


def _curves(setting: Setting) -> dict[str, list[float]]:
    return {ZERO_SHOT: setting.zero_shot_curve, FROZEN: setting.frozen_curve}


def references(setting: Setting, metric: str, ends: tuple[float, float]) -> list[Line]:
    """Return level lines of references; joint training learns in one task and has no average."""
    lines = [_level(name, ends, value) for name, value in pretrained(setting, metric).items()]
    if metric == "last":
        spans = [(group, span) for group in setting.joint if (span := group.interval(metric))]
        lines += [_level(reference(group), ends, span.mean, k) for k, (group, span) in enumerate(spans)]
    return lines


def _level(name: str, ends: tuple[float, float], value: float, variant: int = 0) -> Line:
    return Line(name, None, ends, [100 * value] * 2, settings=grey(name, variant))


def grey(name: str, variant: int = 0) -> dict[str, Any]:
    """Return the dash of a reference; ``variant`` counts those of joint training."""
    dashes = (dash for start, dash in _DASHED.items() if name.startswith(start))
    return {"linestyle": next(dashes, _JOINT_DASHES[variant % len(_JOINT_DASHES)])}


def reference(group: Group) -> str:
    """Return the name of a reference in charts."""
    name = ZERO_SHOT if group.method == "zero_shot" else JOINT
    return f"{name}, {group.variant}" if group.variant else name


def _memory_line(groups: Sequence[Group], metric: str, xs: Sequence[float], few: bool) -> Line:
    """Return the line of a series: a point, a bar and dots per group, all of which have the metric."""
    values = [group.values(metric) for group in groups]
    spans = [interval(seeds) for seeds in values]
    dots = [(x, 100 * one) for x, seeds in zip(xs, values, strict=True) if len(seeds) > 1 for one in seeds]
    bars = [_span(group, metric, few) for group in groups]
    tips = [_tip(group, span) for group, span in zip(groups, spans, strict=True)]
    means = [100 * span.mean for span in spans]
    return Line(groups[0].series, groups[0].look, xs, means, bars, dots, tips)


def _span(group: Group, metric: str, few: bool) -> tuple[float, float] | None:
    """Return the ends of a bar in percent: the interval, or with ``few`` the range of the seeds."""
    span, values = group.interval(metric), group.values(metric)
    if few and len(values) > 1:
        return 100 * min(values), 100 * max(values)
    if span is None or span.low is None or span.high is None:
        return None
    return 100 * span.low, 100 * span.high


def _tip(group: Group, span: Interval) -> str:
    between = "" if span.low is None else f" ({percent(span.low)} to {percent(span.high)})"
    return f"{group.label}: {percent(span.mean)}{between}, {several(span.n, 'seed')}"


def stages_panel(setting: Setting, groups: Sequence[Group], title: str = "") -> Panel | None:
    """Return the panel of A_t of ``groups`` and of references; None where no task has been learned."""
    tasks = len(setting.tasks)
    groups = [group for group in groups if group.curve]
    groups = [group for group in groups if not group.reference] or groups
    if not groups:
        return None
    lines: list[Line] = []
    for name, curve in _curves(setting).items():
        if curve:
            means = [100 * value for value in curve]
            tips = [f"{name}, task {t}: {value:.1f} %" for t, value in enumerate(means, 1)]
            lines.append(Line(name, None, range(1, len(curve) + 1), means, tips=tips, settings=grey(name)))
    ends = (1.0, float(tasks)) if tasks > 1 else (0.9, 1.1)
    joint = [group for group in setting.joint if group not in groups]
    lines += [_level(reference(g), ends, g.curve[-1].mean, k) for k, g in enumerate(joint)]
    for group in groups:
        means = [100 * span.mean for span in group.curve]
        names = setting.tasks
        tips = [f"{group.label}, {name}: {value:.1f} %" for name, value in zip(names, means, strict=False)]
        marks = {} if tasks <= 25 else {"marker": ""}
        name = name_in(group, groups)
        lines.append(Line(name, group.look, range(1, len(means) + 1), means, tips=tips, settings=marks))
    xs, ys = (0.8, tasks + 0.2), around(heights(lines))
    return Panel(lines, xs, ys, "tasks learned", "accuracy so far", suffix=" %", title=title)
