"""Put images in an order: herding, and draws by score. Pure functions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def herding_order(features: Float[np.ndarray, "n d"]) -> NDArray[np.int64]:
    """Return positions of all rows in herding order (iCaRL, Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4).

    The k-th is the row that brings the mean of the first k closest to the mean of all, without replacement (PyCIL's
    rule), so the first m of the order are the choice for any m.

    Args:
        features: of one class; iCaRL takes them at unit length.
    """
    mean, rows = (part.astype(np.float64) for part in (features.mean(axis=0), features))
    left, total = (rows**2).sum(axis=1), np.zeros(rows.shape[1])
    tolerance = 1e-9 * len(rows) * left.max(initial=0)
    order = []
    for k in range(1, len(rows) + 1):
        # k^2 of the squared distances, less what they share: one product finds the few rows to compare exactly
        rough = left - 2 * (rows @ (k * mean - total))
        near = np.flatnonzero(rough <= rough.min() + tolerance)
        best = int(near[np.linalg.norm(mean - (rows[near] + total) / k, axis=1).argmin()])
        order.append(best)
        left[best] = np.inf
        total = total + rows[best]
    return np.array(order, dtype=np.int64)


def race(uniform: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> NDArray[np.float64]:
    """Return priorities whose lowest m are m draws without replacement, each in proportion to the scores of what is
    left.

    An image arrives after an exponential time of rate s; the order of arrival is such a series of draws (Efraimidis and
    Spirakis 2006). Returned are logarithms of the times. Equal scores leave the order of ``uniform``.

    Args:
        uniform: a number in [0, 1] per image, which alone decides the draw.
        scores: s, at least 0; 0 comes last.
    """
    wait = -np.log1p(-np.clip(uniform, 2.0**-64, 1 - 2.0**-53))
    return np.log(wait) - np.log(np.maximum(scores, np.finfo(np.float64).tiny))
