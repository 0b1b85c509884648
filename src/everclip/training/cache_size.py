"""Estimate how many activations a run keeps, and the space that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from everclip.data.cache.rows import Memory
from everclip.models.clip import Clip
from everclip.runs.words import size
from everclip.training.plan import Plan

LEAST = 0.1
"""Smallest fraction of repeated views in training at which fixed views are kept."""


@dataclass(frozen=True)
class Amount:
    """The number of rows of activations that a run keeps.

    Args:
        views: kept of a training image: 1 is the plain picture, and 0 keeps nothing of training images.
        most: largest number of rows at any time, where those that no later stage sees are dropped.
        all: number of rows where none is dropped.
    """

    views: int
    most: int
    all: int

    @classmethod
    def of(cls, plan: Plan) -> Amount:
        """Count for a plan: the images of a task and the memory beside all test images."""
        train, budget = [len(task.train) for task in plan.tasks], plan.budget()
        before = [0, *accumulate(train)]
        kept = before[:-1] if budget == "all" else [min(count, budget) for count in before[:-1]]
        views = _views(plan, sum(train), sum(kept))
        each = views + (views != 1)  # the plain picture too, which may be needed after training
        test = sum(len(task.test) for task in plan.tasks)
        most = max(new + old for new, old in zip(train, kept, strict=True))
        return cls(views, each * most + test, each * sum(train) + test)


def _views(plan: Plan, new: int, again: int) -> int:
    """Return how many views to keep of a training image: no more than the epochs of a task see, and none where that
    saves no work.

    Args:
        new, again: training images of all tasks, and exemplars at the start of each task, added up.
    """
    config, method = plan.config, plan.method
    if not method.capabilities.trains or config.cache.views == 1:
        return 1
    train = config.train
    epochs = train.epochs or math.ceil(
        (train.steps or 0) * train.batch_size * len(plan.tasks) / (new + again)
    )
    draws = epochs * method.passes.views
    views = min(config.cache.views, max(2, draws))
    asked = config.cache.trunk == "on" or config.cache.shared
    computed, seen = min(views, draws) * new, draws * (new + again)
    return views if asked or computed <= (1 - LEAST) * seen else 0


@dataclass(frozen=True)
class Size:
    """The space that the activations of a run take.

    Args:
        shape: of a row.
        exact: whether rows are fp32, as features are; else fp16.
        rows: how many are kept at most.
        views: of each training image, as ``Amount`` has it.
    """

    shape: tuple[int, ...]
    exact: bool
    rows: int
    views: int = 1

    @classmethod
    def of(cls, plan: Plan, clip: Clip) -> Size:
        """Measure for a plan with its model, already cut."""
        assert clip.trunk is not None
        blank = clip.blank()
        amount = Amount.of(plan)
        rows = amount.all if plan.config.cache.shared else amount.most
        return cls(tuple(clip.normalise(blank).shape[1:]), clip.trunk.vectors, rows, amount.views)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return Memory(self.shape, self.exact).row_bytes

    @property
    def nbytes(self) -> int:
        """Largest number of bytes of all kept rows."""
        return self.rows * self.row_bytes

    def words(self) -> str:
        """Describe in a line what is kept."""
        what = "image features are kept" if self.exact else "activations of the frozen trunk are kept"
        if not self.views:
            what += " of test images only (training hardly repeats views and draws new ones; cache.trunk=on keeps them)"
        each = f"{size(self.row_bytes)} each ({'fp32' if self.exact else 'fp16'})"
        return f"{what}: {each}, at most {size(self.nbytes)}"
