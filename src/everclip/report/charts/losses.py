"""Draw the loss of each class over time, around the median, with the mean over classes and the largest."""

from __future__ import annotations

import math

import numpy as np

from everclip.report.charts.canvas import Figure, number, value_range
from everclip.report.charts.class_map import ClassMap, Scale, Strip
from everclip.report.read import ClassValues, RunData


def class_losses(run: RunData, prefix: str) -> Figure | None:
    """The mean loss of each class's images since the record before; mean and largest beneath."""
    records = run.class_losses
    if not records:
        return None
    strip = _strip(records)
    (_, mean), (_, largest) = strip.lines
    ending = f"At the end the mean over classes is {number(mean[-1])}, the largest {number(largest[-1])}."
    return ClassMap(run, records, _scale(records), [strip], "Class losses over time", ending).figure(
        prefix,
        "losses",
        "One row a class, in the order learned: the mean loss of its training images since the record before"
        " (of its nearest record in the task where it had none), orange above the median of the whole run,"
        " blue below, hatched where the task had no image of it. At the right: the last losses, the largest"
        " where there are too many; beneath: each record's mean over classes and its largest (dashed).",
        records,
    )


def _scale(records: list[ClassValues]) -> Scale:
    """Colours reach as far from the median as 95 % of the values: a few odd ones must not pale the rest."""
    values = np.array([value for record in records for value in record.values.values()])
    middle = float(np.median(values))
    reach = float(np.quantile(abs(values - middle), 0.95)) or float(np.max(abs(values - middle))) or 1.0
    decimals = max(0, 1 - math.floor(math.log10(reach)))
    return Scale(
        place=lambda loss: (loss - middle) / reach,
        title="loss; in the middle the median",
        ticks=(f"≤ {number(middle - reach)}", number(middle), f"≥ {number(middle + reach)}"),
        missing="no image",
        label=lambda loss: f"{loss:.{decimals}f}".replace("-", "−") if decimals < 4 else number(loss, 2),
        tip=lambda loss: f"loss {number(loss)} at the end",
    )


def _strip(records: list[ClassValues]) -> Strip:
    mean = [sum(record.values.values()) / len(record.values) for record in records]
    largest = [max(record.values.values()) for record in records]
    lines = [("mean", mean), ("max", largest)]
    return Strip("mean and largest class loss", lines, value_range([*mean, *largest]))
