"""Find duplicate pictures: exact ones by a hash, near ones by their features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.inventory import silent

BLOCK = 2048
"""Rows of features that are compared with as many others at once."""
MOST_PAIRS = 10_000
"""Number of near pairs that are kept, those between the parts first; the others are only counted."""
ROUNDING = 1e-6
"""What the cosine of two rows of unit length may lack to the true one, so that ``least`` = 1 finds what is equal."""


class Pair(NamedTuple):
    """Two pictures by their places, the lower one first, and the cosine of their features, from -1 to 1."""

    first: int
    second: int
    cosine: float


def groups(contents: NDArray[np.int64]) -> list[list[int]]:
    """Return the places of pictures with the same content, a list for each content that occurs more than once.

    Args:
        contents: ``[n]``, ids of content; negative ones are unknown and match nothing.
    """
    order = np.argsort(contents, kind="stable")
    order = order[contents[order] >= 0]
    cuts = np.flatnonzero(np.diff(contents[order])) + 1
    found = [part.tolist() for part in np.split(order, cuts) if len(part) > 1]
    return sorted(found)


def near(
    features: Float32[Tensor, "n d"],
    contents: NDArray[np.int64],
    least: float,
    train: int,
    step: Callable[[int], object] = silent,
) -> tuple[list[Pair], int, int]:
    """Return pairs of pictures whose features have a cosine of ``least`` or more, how many there are, and how many test
    pictures are in one with a training picture.

    Pairs of a training and a test picture come first; within each kind, the nearest ones come first. Pictures of the
    same content are not a near pair. Blocks of features are compared with blocks, so that no matrix of all pairs is
    ever held; the work grows with the square of n.

    Args:
        features: unit length.
        contents: ``[n]``, as for ``groups``.
        train: number of training pictures, which are the first rows.
        step: is called with the number of rows that are done.
    """
    known = torch.from_numpy(contents)
    leaked = torch.zeros(len(features), dtype=torch.bool)
    found = torch.zeros(0, 3, dtype=torch.float64)
    total = 0
    for start in range(0, len(features), BLOCK):
        rows = features[start : start + BLOCK]
        for other in range(start, len(features), BLOCK):
            cosines = rows @ features[other : other + BLOCK].T
            close = cosines >= least - ROUNDING
            if other == start:
                close = close.triu(1)
            one, two = close.nonzero(as_tuple=True)
            mine, its = known[start + one], known[other + two]
            differ = (mine != its) | (mine < 0)
            one, two = one[differ], two[differ]
            total += len(one)
            cosine = cosines[one, two].double()
            one, two = start + one, other + two
            leaked[two[(one < train) & (two >= train)]] = True
            found = torch.cat([found, torch.stack([one.double(), two.double(), cosine], 1)])
            between = (found[:, 0] < train) & (found[:, 1] >= train)
            worst = found[:, 2] + 3 * between  # cosines are 2 apart at most
            found = found[worst.argsort(descending=True, stable=True)[:MOST_PAIRS]]
        step(len(rows))
    pairs = [Pair(int(one), int(two), min(1.0, cosine)) for one, two, cosine in found.tolist()]
    return pairs, total, int(leaked.sum())
