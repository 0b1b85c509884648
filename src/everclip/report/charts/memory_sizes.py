"""Draw charts that set groups of runs side by side: accuracy against memory, and after each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from everclip.metrics.stats import Interval
from everclip.report.charts.canvas import Figure, both, csv_text, ticks
from everclip.report.charts.plots import Line, Plot, Plots, aligned, around
from everclip.report.groups import Group, Memory, Setting
from everclip.report.words import percent, several

ZERO_SHOT, JOINT = "zero-shot", "joint"
REFERENCES = (
    " Grey: zero-shot (the pretrained model) and joint training (on all tasks at once), where they are known."
)
INTERVALS = (
    " Bars: 95 % intervals of the mean over seeds (Student t), cut off where they leave the panel; none where there is"
    " one seed."
)
RANGES = " Bars: from the lowest seed to the highest, since two seeds give no interval of the mean."


def against_memory(settings: Sequence[Setting], key: str) -> Figure | None:
    """A number of results.json, ``last`` or ``average``, at each memory size; one panel per setting."""
    plots, bars = panels(settings, key, _memory_plot)
    if not plots:
        return None
    words = {
        "last": ("Last accuracy against memory", "after the last task on the test images of all classes"),
        "average": ("Average accuracy against memory", "the mean of the accuracies after each task"),
    }
    title, what = words[key]
    chart = side_by_side(title, plots)
    rows = [
        [setting.name, *named(group), *numbers(span)]
        for setting in settings
        for group in setting.every
        if (span := group.interval(key)) is not None
    ]
    rows += [
        [s.name, "pretrained", "", "", 1, value, "", ""] for s in settings if (value := _pretrained(s, key))
    ]
    return Figure(
        f"memory-{key}",
        title,
        f"Accuracy in %: {what}. The memory is the number of training images kept; its sizes are evenly spaced, not to"
        " scale, and methods stand a little apart so that they do not hide each other."
        " A level line without markers is a method that keeps none."
        + bars
        + " Pale dots: single seeds."
        + REFERENCES
        + ("" if key == "last" else " Joint training has no average of its own: it learns in one task."),
        *both(chart.draw, "all", f"memory-{key}"),
        csv_text(["setting", "method", "variant", "memory", "seeds", "mean", "low", "high"], rows),
    )


def after_each_task(setting: Setting) -> Figure | None:
    """A_t of each group, one panel per memory size."""
    sizes: list[Memory] = [*setting.memories] or [None]
    plots = aligned([plot for size in sizes if (plot := _stages_plot(setting, size)) is not None])
    if not plots:
        return None
    title = "Accuracy after each task"
    chart = Plots(
        title, f"{several(len(plots), 'panel')}; the numbers are in the CSV file.", plots, height=210
    )
    rows = [
        [*named(group), t + 1, *numbers(span)]
        for group in setting.every
        for t, span in enumerate(group.curve)
    ]
    rows += [
        ["pretrained", "", "", t + 1, 1, value, "", ""] for t, value in enumerate(setting.zero_shot_curve)
    ]
    open_ = [group.label for group in setting.every if not group.finished and group.curve]
    return Figure(
        "stages",
        title,
        "Accuracy in % on the test images of all tasks learned so far, among all classes learned so far: the test grows"
        " and gets harder from left to right. Means over seeds."
        + REFERENCES
        + (f" As far as unfinished runs have come: {'; '.join(open_)}." if open_ else ""),
        *both(chart.draw, setting.ident, "stages"),
        csv_text(["method", "variant", "memory", "task", "seeds", "mean", "low", "high"], rows),
    )


def panels(
    settings: Sequence[Setting], key: str, draw: Callable[[Setting, str, bool], Plot | None]
) -> tuple[list[Plot], str]:
    """The panels of the settings that have something to draw, and a sentence on their bars."""
    spans = [group.interval(key) for setting in settings for group in setting.every]
    few = any(span is not None and span.n == 2 for span in spans)
    plots = [plot for setting in settings if (plot := draw(setting, key, few)) is not None]
    return plots, RANGES if few else INTERVALS


def side_by_side(title: str, plots: Sequence[Plot]) -> Plots:
    """The chart of panels of several settings."""
    told = f"{several(len(plots), 'panel')}; the numbers are in the CSV file."
    return Plots(title, told, [*plots], height=280, ends=True)


def named(group: Group) -> list[object]:
    """Method, variant and memory of a row of a CSV file."""
    return [group.method, group.variant, "" if group.memory is None else group.memory]


def shown(lines: Iterable[Line]) -> list[float]:
    """Every height that lines and their dots have, for the range of an axis."""
    return [y for line in lines for y in (*line.ys, *(dot for _, dot in line.dots)) if y is not None]


def numbers(span: Interval) -> list[object]:
    """Seeds, mean and ends of a row of a CSV file."""
    return [span.n, *("" if value is None else round(value, 6) for value in (span.mean, span.low, span.high))]


def _pretrained(setting: Setting, key: str) -> float | None:
    if key == "last":
        return setting.zero_shot
    curve = setting.zero_shot_curve
    return sum(curve) / len(curve) if curve else None


def _memory_plot(setting: Setting, key: str, few: bool) -> Plot | None:
    groups = [group for group in setting.groups if group.interval(key) is not None]
    sizes = [size for size in setting.memories if any(group.memory == size for group in groups)]
    if not sizes:
        return None
    series = list(dict.fromkeys(group.series for group in groups))
    ends = (-0.45, len(sizes) - 0.55)
    lines = references(setting, key, ends, few)
    for k, name in enumerate(series):
        apart = (k - (len(series) - 1) / 2) * min(0.12, 0.7 / len(series))
        members = [
            group for size in sizes for group in groups if group.series == name and group.memory == size
        ]
        xs = [sizes.index(group.memory) + apart for group in members]
        lines.append(memory_line(members, key, xs, few))
    return Plot(
        setting.name,
        lines,
        ends,
        around(shown(lines)),
        [(k, str(size)) for k, size in enumerate(sizes)],
        "images kept in memory",
        " %",
    )


def memory_line(groups: Sequence[Group], key: str, xs: Sequence[float], few: bool) -> Line:
    """The line of a series, with a marker, a bar and dots at each of its groups."""
    means = [(group.interval(key), x, group) for group, x in zip(groups, xs, strict=True)]
    known = [(span, x, group) for span, x, group in means if span is not None]
    return Line(
        groups[0].series,
        groups[0].look,
        [x for _, x, _ in known],
        [100 * span.mean for span, _, _ in known],
        [_span(group, key, few) for _, _, group in known],
        [(x, 100 * value) for span, x, group in known if span.n > 1 for value in group.values(key)],
        [_tip(group, span) for span, _, group in known],
    )


def _span(group: Group, key: str, few: bool) -> tuple[float, float] | None:
    """The ends of a bar in percent: of the interval, or of the seeds where there are few."""
    span, values = group.interval(key), group.values(key)
    if few and len(values) > 1:
        return 100 * min(values), 100 * max(values)
    if span is None or span.low is None or span.high is None:
        return None
    return 100 * span.low, 100 * span.high


def _tip(group: Group, span: Interval) -> str:
    between = "" if span.low is None else f" ({percent(span.low)} to {percent(span.high)})"
    return f"{group.label}: {percent(span.mean)}{between}, {several(span.n, 'seed')}"


def references(
    setting: Setting, key: str, ends: tuple[float, float], few: bool, level: bool = True
) -> list[Line]:
    """Level lines: zero-shot, joint training, and with ``level`` methods to which the memory makes no difference."""
    lines: list[Line] = []
    value = _pretrained(setting, key)
    if value is not None:
        lines.append(Line(ZERO_SHOT, None, ends, [100 * value] * 2))
    for group in setting.level:
        span = group.interval(key)
        if span is None or group.method == "zero_shot" or (key == "average" and group.method == "joint"):
            continue
        if group.reference:
            lines.append(Line(reference(group), None, ends, [100 * span.mean] * 2, dash="dots"))
        elif level:
            bars = [None, _span(group, key, few)]
            lines.append(Line(group.series, group.look, ends, [100 * span.mean] * 2, bars, marked=False))
    return lines


def reference(group: Group) -> str:
    """Return what charts call a reference."""
    name = ZERO_SHOT if group.method == "zero_shot" else JOINT
    return f"{name}, {group.variant}" if group.variant else name


def _stages_plot(setting: Setting, size: Memory) -> Plot | None:
    tasks = len(setting.tasks)
    groups = [
        g
        for g in (*setting.groups, *setting.level)
        if g.memory in (size, None) and not g.reference and g.curve
    ]
    if not groups or tasks < 2:
        return None
    xs = range(1, tasks + 1)
    lines: list[Line] = []
    if setting.zero_shot_curve:
        lines.append(Line(ZERO_SHOT, None, xs, _percents(setting.zero_shot_curve)))
    for group in setting.joint:
        lines.append(Line(reference(group), None, (1, tasks), [100 * group.curve[-1].mean] * 2, dash="dots"))
    for group in groups:
        means = _percents(span.mean for span in group.curve)
        tips = [f"{group.label}, task {t}: {value:.1f} %" for t, value in enumerate(means, 1)]
        lines.append(Line(group.series, group.look, xs[: len(means)], means, tips=tips, marked=tasks <= 25))
    return Plot(
        "" if size is None else f"memory {size}",
        lines,
        (0.8, tasks + 0.2),
        around([y for line in lines for y in line.ys if y is not None]),
        [(x, f"{x:g}") for x in ticks(1, tasks, 10) if x == int(x)],
        "tasks learned",
        " %",
    )


def _percents(values: Iterable[float]) -> list[float]:
    return [100 * value for value in values]
