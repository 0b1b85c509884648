"""Equally many images per class, drawn in proportion to the method's scores.

    P(x is drawn next) = s(x) / sum of s over the images of its class and domain that are left

Each class keeps floor(M / classes seen), drawn without replacement, exemplars and new images alike; the method computes
scores again after each task. cclis has such scores; with any other method all are equal, and the choice is that of
random.

Paper: CCLIS, https://arxiv.org/abs/2403.04599; draws by Efraimidis and Spirakis 2006
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everclip.data.policies import Policy, Pool, per_class, race


class Score(Policy):
    """Draws by score, equally many per class."""

    scores = True

    def choose(self, pool: Pool) -> NDArray[np.int64]:
        if pool.scores is None:
            return per_class(pool, pool.priority)
        return per_class(pool, race(pool.priority, pool.scores))
