"""Draw how confident a model is: the accuracy of its most confident answers, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from everclip.compare.groups import Group
from everclip.plots.accuracy import grey, reference
from everclip.plots.panels import How, Line, Panel, around, heights, show
from everclip.plots.runs import Runs, groups_of, name_in
from everclip.runs.predictions import coverage, predictions
from everclip.runs.predictions import reliability as bins_of

_PLACES = 20
DIAGONAL = "as sure as right"
"""The name of the line where accuracy equals probability."""
_FEWEST = 10  # images of a bin that is drawn
_TICKS = [(float(x), f"{x} %") for x in (0, 25, 50, 75, 100)]


def confidence(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the accuracy of the most confident answers after the last task, in %, against their fraction.

    Images are sorted by the margin between the best and the second-best score. Means over seeds.

    Raises:
        UserError: the runs cannot be compared, or none has predictions.
    """
    panel = coverage_panel(groups_of(runs, how.get("memory")))
    return show(panel, ax, how, "no finished run has predictions.npz")


def reliability(runs: Runs, ax: Axes | None = None, **how: Unpack[How]) -> Axes:
    """Draw the accuracy of test images against the probability of their best class, both in %, in 15 bins of all seeds
    (Guo et al. 2017), without bins of fewer than ten images.

    Raises:
        UserError: the runs cannot be compared, or none has recorded probabilities.
    """
    panel = reliability_panel(groups_of(runs, how.get("memory")))
    return show(panel, ax, how, "no finished run has recorded probabilities")


def _looks(group: Group, groups: Sequence[Group]) -> tuple[str, int | None, dict[str, str]]:
    """Return name, look and settings of a group's line."""
    if group.reference:
        return reference(group), None, grey(reference(group))
    return name_in(group, groups), group.look, {}


def coverage_panel(groups: Sequence[Group], title: str = "") -> Panel | None:
    """Return the panel of ``confidence``; None where no group has predictions."""
    xs = [100 * k / _PLACES for k in range(1, _PLACES + 1)]
    lines: list[Line] = []
    for group in groups:
        found = [one for run in group.finished if (one := predictions(run)) is not None]
        if found:
            mean = np.mean([coverage(one, _PLACES) for one in found], axis=0)
            name, look, dash = _looks(group, groups)
            lines.append(Line(name, look, xs, [100 * float(y) for y in mean], settings=dash | {"marker": ""}))
    if not lines:
        return None
    under = "share of the images, most confident first"
    return Panel(lines, (0, 100), around(heights(lines)), under, "accuracy", _TICKS, " %", title=title)


def reliability_panel(groups: Sequence[Group], title: str = "") -> Panel | None:
    """Return the panel of ``reliability``; None where no group has probabilities."""
    lines: list[Line] = []
    for group in groups:
        found = [one for run in group.finished if (one := predictions(run)) is not None]
        bins = [one for one in bins_of(found) if one.images >= _FEWEST]
        if bins:
            tips = [f"{group.series}: {b.images} images, {100 * b.accuracy:.0f} % right" for b in bins]
            xs, ys = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
            name, look, dash = _looks(group, groups)
            counts = [one.images for one in bins]
            lines.append(Line(name, look, xs, ys, tips=tips, settings=dash, counts=counts))
    if not lines:
        return None
    diagonal = Line(DIAGONAL, None, (0, 100), (0, 100), settings={"linewidth": 1})
    under = "probability that the model gives"
    return Panel([diagonal, *lines], (0, 100), (0, 100), under, "accuracy", _TICKS, " %", title=title)
