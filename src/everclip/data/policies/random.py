"""Equally many images per class, at random.

    each class keeps floor(M / classes seen) images, those of the lowest fixed random number

Where a class has images of several domains they share its quota equally. Trimming is nested: what is held later was
held before. Nothing is kept while M is below the number of classes seen.

Paper: https://arxiv.org/abs/2605.03866, section 3.1
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from everclip.data.policies import Policy, Pool, per_class


class Random(Policy):
    """Images at random, equally many per class."""

    fill: ClassVar[bool] = False
    """Whether a class's other domains take the part of the quota that a domain with few images leaves."""

    def choose(self, pool: Pool) -> NDArray[np.int64]:
        return per_class(pool, pool.priority, self.fill)
