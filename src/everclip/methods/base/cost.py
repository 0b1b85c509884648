"""State in numbers what a method demands of the towers, to estimate the time and the memory of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Text = Literal["batch", "seen", "none"]
Stage = Callable[[int], float]
"""A number for each stage, counted from 0."""


class Passes(NamedTuple):
    """Passes of the towers, and what is kept beside the model.

    Args:
        towers: stage -> (passes with gradient, passes without) per image and epoch.
        text: classes whose prompts a step encodes: those of the batch, all seen, or none.
        after: (with gradient, without) per new image after its task: for a Fisher matrix, sums, or choosing exemplars.
        read: stage -> passes of the image tower for a prediction.
        views: pictures made of each image of a batch.
        frozen: stage -> image towers held without gradient beside the trained one; None: as many as ``towers`` passes
            without gradient, at most one.
        saved: stage -> image towers in a checkpoint beside the model.
        anchored: numbers held and saved for each parameter that trains.
        sums: bytes of sums over random features, saved beside the model.
    """

    towers: Callable[[int], tuple[float, float]] = lambda stage: (1.0, 0.0)
    text: Text = "batch"
    after: tuple[float, float] = (0.0, 0.0)
    read: Stage = lambda stage: 1.0
    views: int = 1
    frozen: Stage | None = None
    saved: Stage = lambda stage: 0.0
    anchored: int = 0
    sums: int = 0

    def held(self, stage: int) -> float:
        """Return the image towers held without gradient."""
        return self.frozen(stage) if self.frozen else min(1.0, self.towers(stage)[1])


def teacher(views: int = 1) -> Callable[[int], tuple[float, float]]:
    """Return ``views`` passes of the model and, from the second task on, as many of the frozen one before."""
    return lambda stage: (float(views), float(views * (stage > 0)))
