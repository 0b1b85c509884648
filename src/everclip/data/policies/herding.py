"""Equally many images per class, chosen so that they keep its mean feature.

    the k-th = argmin_x || mean(class) - mean(the first k - 1 and x) ||     on unit-length features, each image once

Each class keeps the first floor(M / classes seen) of this order, shared equally by its domains, each with an order of
its own. The order is taken once, by the method's features when the task ends; it stays when the network moves.

Paper: iCaRL, https://arxiv.org/abs/1611.07725, algorithm 4, by PyCIL's rule
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from everclip.data.images import ImageSet
from everclip.data.policies import Policy, Pool, herding_order, per_class


class Herding(Policy):
    """The first of each class's herding order."""

    features = True

    def ranks(self, new: ImageSet, features: Float[np.ndarray, "n d"]) -> NDArray[np.int64]:
        """Return the place of each image in the order of its class and domain."""
        place = np.zeros(len(new), dtype=np.int64)
        for where in new.kinds():
            place[where[herding_order(features[where])]] = np.arange(len(where))
        return place

    def choose(self, pool: Pool) -> NDArray[np.int64]:
        return per_class(pool, pool.priority)
