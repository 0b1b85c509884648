"""The budget in equal parts from all tasks so far.

    each of t tasks keeps M / t

Whole numbers by largest remainder, ties to the newer task; within a task equally many images per class, at random. A
task with fewer images than its share gives all, and the rest is spread over the others.

Paper: TiC-CLIP, https://arxiv.org/abs/2310.16226; whole numbers are ours
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from everclip.data.policies import Policy, Pool, per_task


class EqualTask(Policy):
    """The same share of each task."""

    per_class = False

    def choose(self, pool: Pool) -> NDArray[np.int64]:
        return per_task(pool, [Fraction(1)] * pool.tasks)
