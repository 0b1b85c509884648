"""Draw the accuracy of single classes, and the confusions of old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from everclip.plots import style
from everclip.plots.panels import axes, extent
from everclip.plots.runs import One, Runs, nothing, run_of, setting_of
from everclip.plots.text import printable, shorten
from everclip.plots.tips import Tips, at_points
from everclip.runs.predictions import FATES, fates
from everclip.runs.read import RunData


def per_class(run: One, ax: Axes | None = None, *, most: int = 30) -> Axes:
    """Draw the accuracy of single classes in %: the pretrained model's, right after the class's task, and at the end.

    The second is left out where classes have test images in several tasks: it covers those of their first task alone.

    Args:
        most: the number of classes to draw, worst at the end on top.

    Raises:
        UserError: the run has not finished.
    """
    read = run_of(run)
    rows = [row for row in read.results.get("per_class", []) if row["last"] is not None]
    if not rows:
        raise nothing("the run has not finished")
    rows = sorted(rows, key=lambda row: (row["last"], row["class"]))[:most]
    ax = axes(ax, 6.0, 1.2 + 0.24 * len(rows))
    places = range(len(rows))
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "zero_shot": ("zero-shot", {"color": style.DIM, "marker": "|"}),
        "after_learning": ("after its task", {"color": style.SECOND, "marker": "o", "mfc": "none"}),
        "last": ("at the end", {"color": style.FIRST, "marker": "o"}),
    }
    if any(row["zero_shot"] is None for row in rows):  # features without text
        del kinds["zero_shot"]
    if read.same_images:
        ends = [[100 * row[key] for row in rows] for key in ("after_learning", "last")]
        ax.hlines(places, ends[0], ends[1], color=style.EDGE, linewidth=1.5)
    else:
        del kinds["after_learning"]
    for key, (name, look) in kinds.items():
        xs = [100 * row[key] for row in rows]
        ax.plot(xs, places, linestyle="none", label=name, **look)
        tips = [f"{row['class']}, {name}: {x:.0f} %" for row, x in zip(rows, xs, strict=True)]
        at_points(ax, xs, list(places), tips)
    ax.set_yticks(list(places), [shorten(row["class"], 130) for row in rows], parse_math=False)
    ax.set(xlim=(-2, 102), ylim=(len(rows) - 0.4, -0.6), xlabel="accuracy, %")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax


FATE_COLOURS = (style.COLOURS[0], style.COLOURS[1], style.DIM, style.COLOURS[4])
"""Colours of ``FATES``."""
_FATE_INK = (style.ON_DARK, style.ON_DARK, style.PAGE, style.ON_LIGHT)
Bars = list[tuple[str, list[float]]]


def fate_bars(named: Sequence[tuple[str, Sequence[RunData]]]) -> Bars:
    """Return the mean fractions of ``FATES`` over each name's runs, where any has recorded enough."""
    bars: Bars = []
    for name, runs in named:
        if known := [found for run in runs if (found := fates(run)) is not None]:
            bars.append((name, np.mean(known, axis=0).tolist()))
    return bars


def old_classes(runs: Runs, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw the answers to test images of all classes but the last task's, after the last task, in %.

    One bar per method and memory size, means over seeds: right, or a class of a later, the same or an earlier task.

    Raises:
        UserError: the runs cannot be compared, or none has recorded enough.
    """
    bars = fate_bars([(group.label, group.finished) for group in setting_of(runs).every])
    if not bars:
        raise nothing("no finished run of several tasks has predictions.npz and class_labels")
    return draw_fates(bars, axes(ax, 7.0, 0.8 + 0.36 * len(bars)), legend)


def draw_fates(bars: Bars, ax: Axes, legend: bool = False) -> Axes:
    """Draw ``fate_bars`` on ``ax``."""
    left = np.zeros(len(bars))
    width = extent(ax)[0]
    for k, (text, colour, shade) in enumerate(zip(FATES, FATE_COLOURS, _FATE_INK, strict=True)):
        parts = np.array([100 * values[k] for _, values in bars])
        look = {"color": colour, "edgecolor": style.PAGE, "linewidth": 1, "label": text}
        ax.barh(range(len(bars)), parts, 0.7, left, **look)
        tips: dict[tuple[float, ...], str] = {}
        for row, (start, part) in enumerate(zip(left, parts, strict=True)):
            if part * width / 100 > 24:
                inside = {"color": shade, "ha": "center", "va": "center_baseline", "fontsize": 10.5}
                ax.text(start + part / 2, row, f"{part:.0f}", **inside)
            if part > 0:
                tips[start, row - 0.35, start + part, row + 0.35] = f"{text}: {part:.1f} %"
        Tips(ax, list(tips), list(tips.values()))
        left = left + parts
    ax.set_yticks(range(len(bars)), [printable(name) for name, _ in bars], parse_math=False)
    ax.set(xlim=(0, 100.2), ylim=(len(bars) - 0.5, -0.5), xticks=[])
    ax.grid(False)
    ax.tick_params(length=0, labelcolor=style.INK)
    ax.spines["bottom"].set_visible(False)
    if legend:
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return ax
