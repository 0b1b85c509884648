"""Read a finished run's predictions for the test images, and derive confusions and confidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everclip.errors import UserError
from everclip.metrics.calibration import BINS, bins_of, error_of
from everclip.runs.finished import answers
from everclip.runs.read import RunData
from everclip.runs.schema import test_images


@dataclass(frozen=True, eq=False)
class Predictions:
    """The columns of predictions.npz (docs/results.md), one row per test image."""

    label: NDArray[np.int64]  # ``[n]``
    first: NDArray[np.int64]  # ``[n]``, the best label
    margin: NDArray[np.float32]  # ``[n]``, score of the best label minus that of the second
    # ``[n]``, probability of the best label in 0..1; None where the run did not record it
    confidence: NDArray[np.float32] | None

    @property
    def right(self) -> NDArray[np.bool_]:
        """``[n]``, whether the best label is the image's."""
        return self.label == self.first


@lru_cache(maxsize=256)
def _read(path: Path, changed: int, images: int) -> Predictions | None:
    """Return the file's content, cached by its modification time: a page asks for it several times."""
    try:
        found = answers(path, images)
    except UserError:
        return None
    if found is None or "margin" not in found or not len(found["label"]):
        return None
    return Predictions(found["label"], found["top"][:, 0].copy(), found["margin"], found.get("confidence"))


def predictions(run: RunData) -> Predictions | None:
    """Return the run's predictions; None where they are missing or cannot be read."""
    path = run.path / "predictions.npz"
    if not run.finished or not path.is_file():
        return None
    return _read(run.path, path.stat().st_mtime_ns, test_images(run.results))


def labels(run: RunData) -> dict[int, str]:
    """Return class names by label; empty where the run did not record the labels."""
    known = run.results.get("class_labels") or []
    return dict(zip(known, run.classes, strict=False)) if len(known) == len(run.classes) else {}


class Confusion(NamedTuple):
    """How many of a class's test images were classified as another class."""

    true: str
    taken: str
    images: int
    of: int


def confusions(run: RunData) -> list[Confusion]:
    """Return pairs of classes, by the fraction of the first one's images, largest first."""
    found, names = predictions(run), labels(run)
    if found is None or not names:
        return []
    sizes = Counter(found.label.tolist())
    wrong = ~found.right
    pairs = Counter(zip(found.label[wrong].tolist(), found.first[wrong].tolist(), strict=True))
    rows = [
        Confusion(names[true], names[taken], images, sizes[true])
        for (true, taken), images in pairs.items()
        if true in names and taken in names
    ]
    return sorted(rows, key=lambda row: (-row.images / row.of, -row.images, row.true, row.taken))


def learned_captions(run: RunData) -> bool:
    """Return whether a run has learned images with captions, so that it classifies nothing."""
    return "retrieval" in run.results


def no_confusions(run: RunData) -> str:
    """Say what a finished run without confusions has done, to follow its name."""
    if learned_captions(run):
        return "learned captions, in place of classes"
    if not labels(run):
        return "did not record the labels of classes (class_labels in results.json)"
    if predictions(run) is None:
        return "left no predictions.npz that can be read"
    return "classified every test image correctly"


FATES = ("right", "taken for a class learned later", "for one of the same task", "for one learned earlier")
"""Fates of test images of old classes."""


def fates(run: RunData) -> list[float] | None:
    """Return the fraction of each of ``FATES`` among images of old classes, which are all but the last task's.

    None where no class is old, or where the run did not record enough.
    """
    found, names = predictions(run), labels(run)
    if found is None or not names or len(set(run.class_task.values())) < 2:
        return None
    task_of = {label: run.class_task.get(name, 0) for label, name in names.items()}
    tasks = np.array([task_of.get(label, 0) for label in found.label.tolist()])
    taken = np.array([task_of.get(label, 0) for label in found.first.tolist()])
    old, right = tasks < max(task_of.values()), found.right
    if not old.any():
        return None
    parts = (right, taken > tasks, ~right & (taken == tasks), taken < tasks)
    return [float(part[old].mean()) for part in parts]


def coverage(found: Predictions, places: int) -> list[float]:
    """Return the accuracy among the 1/places, 2/places, ... of the images with the largest margins, up to all."""
    right = found.right[np.argsort(-found.margin, kind="stable")]
    ends = np.array([max(1, round(len(right) * k / places)) for k in range(1, places + 1)])
    return (np.cumsum(right)[ends - 1] / ends).tolist()


class Bin(NamedTuple):
    """Images of similar probability: its mean, their accuracy, and their number."""

    confidence: float
    accuracy: float
    images: int


def reliability(found: Sequence[Predictions]) -> list[Bin]:
    """Return the bins of equal width that have images, of all ``found`` together; empty without probabilities."""
    known = [(one.confidence, one.right) for one in found if one.confidence is not None]
    if not known:
        return []
    sure, right = (np.concatenate(parts) for parts in zip(*known, strict=True))
    place = bins_of(sure)
    return [
        Bin(float(sure[inside].mean()), float(right[inside].mean()), int(inside.sum()))
        for inside in (place == k for k in range(BINS))
        if inside.any()
    ]


def calibration(found: Predictions) -> tuple[float, float] | None:
    """Return the ECE in 0..1 and the overconfidence (mean probability minus accuracy, -1..1); None without
    probabilities."""
    if found.confidence is None:
        return None
    return error_of(found.confidence, found.right), float(
        found.confidence.mean(dtype=float) - found.right.mean()
    )
