"""Draw GDRO's class weights over time, around uniform, with their entropy and the largest weight."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from everclip.report.charts.canvas import Figure
from everclip.report.charts.class_map import ClassMap, Scale, Strip
from everclip.report.read import ClassValues, RunData

_OCTAVES = 3.0  # class weights are coloured from 1/8 to 8 times uniform


def class_weights(run: RunData, prefix: str) -> Figure | None:
    """GDRO's weight of each class over steps, as a ratio to uniform; entropy and largest weight beneath."""
    if not run.class_weights:
        return None
    shares = [_shares(record) for record in run.class_weights]
    ratios = [
        ClassValues(s.step, s.stage, {name: share * len(s.values) for name, share in s.values.items()})
        for s in shares
    ]
    ending = f"Normalised entropy at the end: {_entropy(shares[-1]):.3f}."
    title = "Class weights over time (GDRO)"
    return ClassMap(run, ratios, _SCALE, _strips(shares), title, ending).figure(
        prefix,
        "weights",
        "One row a class, in the order learned: the weight that the loss gives it, as a multiple of uniform"
        " (1 / number of classes learned so far). At the right: the last multiple, of the heaviest classes"
        " where there are too many to name. Entropy is 1 when all classes weigh the same; dashed: uniform.",
        shares,
    )


def entropies(run: RunData) -> list[float]:
    """Entropy of each record of class weights: Shannon's over its maximum, in 0..1."""
    return [_entropy(_shares(record)) for record in run.class_weights]


def _shares(weights: ClassValues) -> ClassValues:
    """The weights scaled to sum to one."""
    total, uniform = math.fsum(weights.values.values()), 1 / len(weights.values)
    shares = {name: value / total if total > 0 else uniform for name, value in weights.values.items()}
    return ClassValues(weights.step, weights.stage, shares)


def _entropy(shares: ClassValues) -> float:
    """Shannon entropy divided by its largest value, so in 0..1 whatever the number of classes."""
    if len(shares.values) < 2:
        return 1.0
    return -math.fsum(p * math.log(p) for p in shares.values.values() if p > 0) / math.log(len(shares.values))


def _strips(shares: list[ClassValues]) -> list[Strip]:
    entropy = [_entropy(s) for s in shares]
    low = 0.0 if min(entropy) < 0.5 else math.floor(10 * min(entropy)) / 10
    largest = [100 * max(s.values.values()) for s in shares]
    uniform = [100 / len(s.values) for s in shares]
    return [
        Strip("entropy / its maximum", [("", entropy)], (min(low, 0.9), 1.0)),
        Strip(
            "largest class weight",
            [("", largest), ("uniform", uniform)],
            (0.0, 1.05 * max([*largest, *uniform])),
            " %",
        ),
    ]


def _place(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log2(np.maximum(ratio, 2**-_OCTAVES)) / _OCTAVES


_SCALE = Scale(
    place=_place,
    title="weight / uniform weight",
    ticks=("⅛", "¼", "½", "1", "2", "4", "8"),
    missing="not learned yet",
    label=lambda ratio: f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×",
    tip=lambda ratio: f"{ratio:.2f} × uniform at the end",
)
