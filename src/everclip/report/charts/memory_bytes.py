"""Draw accuracy against the bytes kept beside the model, exemplars and state of the method together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from everclip.report.charts.canvas import Figure, both, csv_text
from everclip.report.charts.memory_sizes import (
    REFERENCES,
    memory_line,
    named,
    numbers,
    panels,
    references,
    shown,
    side_by_side,
)
from everclip.report.charts.plots import Plot, around
from everclip.report.groups import Group, Setting
from everclip.report.words import size


def against_bytes(settings: Sequence[Setting], key: str) -> Figure | None:
    """A number of results.json, ``last`` or ``average``, against bytes; a panel per setting."""
    plots, bars = panels(settings, key, _bytes_plot)
    if not plots:
        return None
    title = f"{'Last' if key == 'last' else 'Average'} accuracy against bytes kept"
    chart = side_by_side(title, plots)
    rows = [
        [setting.name, *named(group), *(round(value) for value in _bytes(group)), *numbers(span)]
        for setting in settings
        for group in _sized(setting, key)
        if (span := group.interval(key)) is not None
    ]
    return Figure(
        f"bytes-{key}",
        title,
        "Accuracy in % against all that a method keeps beside the model: the files of its exemplars, and its state,"
        " such as sums, statistics and copies of the model. The axis is logarithmic, with nothing kept at its left end."
        " Methods without exemplars are no level lines here: what they keep in their place is counted."
        + bars
        + REFERENCES,
        *both(chart.draw, "all", f"bytes-{key}"),
        csv_text(
            [
                *("setting", "method", "variant", "memory", "image_bytes", "state_bytes"),
                *("seeds", "mean", "low", "high"),
            ],
            rows,
        ),
    )


def _sized(setting: Setting, key: str) -> list[Group]:
    """The groups that have the number and say what they keep, but for references."""
    return [
        group
        for group in setting.every
        if not group.reference
        and group.interval(key) is not None
        and group.interval("kept_bytes") is not None
    ]


def _bytes(group: Group) -> tuple[float, float]:
    """Means over seeds of the bytes of exemplars, and of the method's state."""
    images, state = group.interval("memory_bytes"), group.interval("state_bytes")
    return (images.mean if images else 0.0), (state.mean if state else 0.0)


def _bytes_plot(setting: Setting, key: str, few: bool) -> Plot | None:
    groups = _sized(setting, key)
    kept = [sum(_bytes(group)) for group in groups]
    some = [math.log10(value) for value in kept if value > 0]
    if not some:
        return None
    first, last = math.floor(min(some)), math.ceil(max(some))
    nothing = first - 1  # where the axis has its zero, if anything lies there
    start = nothing if 0 in kept else first
    ends = (start - 0.15, max(last, start + 1) + 0.15)
    lines = references(setting, key, ends, few, level=False)
    for name in dict.fromkeys(group.series for group in groups):
        members = sorted((sum(_bytes(group)), k) for k, group in enumerate(groups) if group.series == name)
        xs = [math.log10(value) if value > 0 else float(nothing) for value, _ in members]
        lines.append(memory_line([groups[k] for _, k in members], key, xs, few))
    decades = [(power, size(10.0**power).replace(".0", "")) for power in range(first, last + 1)]
    return Plot(
        setting.name,
        lines,
        ends,
        around(shown(lines)),
        [*([(nothing, "0")] if start == nothing else []), *decades],
        "bytes of images + state",
        " %",
    )
