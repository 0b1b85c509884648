"""Half of the budget from the newest task, half of the rest from the one before, and so on.

    task j of t keeps M 2^-(t-j+1)   for j >= 2,   M 2^-(t-1)   for j = 1          t = 4, M = 16: 2, 2, 4, 8

Whole numbers by largest remainder, ties to the newer task; within a task equally many images per class, at random. A
task with fewer images than its share gives all, and the rest is spread over the others.

Paper: TiC-CLIP, https://arxiv.org/abs/2310.16226; whole numbers are ours
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from everclip.data.policies import Policy, Pool, per_task


def weights(tasks: int) -> list[Fraction]:
    """Return the fraction of each task, the oldest first, doubled from the second on."""
    return [Fraction(1, 2 ** (tasks - max(task, 1))) for task in range(tasks)]


class Exp(Policy):
    """Shares that halve with each step into the past."""

    per_class = False

    def choose(self, pool: Pool) -> NDArray[np.int64]:
        return per_task(pool, weights(pool.tasks))
