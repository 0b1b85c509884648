"""Find pictures that are there twice: byte for byte by a hash, and nearly by their features."""

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
"""Near pairs that are kept, the nearest; the others are counted."""


class Pair(NamedTuple):
    """Two pictures by their places, the first of them first, and the cosine of their features, from -1 to 1."""

    first: int
    second: int
    cosine: float


def groups(contents: NDArray[np.int64]) -> list[list[int]]:
    """Return the places of pictures with the same content, a list for each content that is there twice or more.

    Args:
        contents: ``[n]``, ids of content; negative ones are unknown and equal to none.
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
    step: Callable[[int], object] = silent,
) -> tuple[list[Pair], int]:
    """Return pairs of pictures whose features have a cosine of ``least`` or more, the nearest first, and how many there
    are.

    Pictures of the same content are no near pair. Blocks of features are compared with blocks, so that no matrix of all
    pairs is ever held; the work grows with the square of n.

    Args:
        features: unit length.
        contents: ``[n]``, as for ``groups``.
        step: is called with the number of rows that are done.
    """
    known = torch.from_numpy(contents)
    found = torch.zeros(0, 3, dtype=torch.float64)
    total = 0
    for start in range(0, len(features), BLOCK):
        rows = features[start : start + BLOCK]
        for other in range(start, len(features), BLOCK):
            cosines = rows @ features[other : other + BLOCK].T
            close = cosines >= least
            if other == start:
                close = close.triu(1)
            one, two = close.nonzero(as_tuple=True)
            mine, its = known[start + one], known[other + two]
            differ = (mine != its) | (mine < 0)
            one, two = one[differ], two[differ]
            total += len(one)
            made = torch.stack(
                [(start + one).double(), (other + two).double(), cosines[one, two].double()], 1
            )
            found = torch.cat([found, made])
            found = found[found[:, 2].argsort(descending=True, stable=True)[:MOST_PAIRS]]
        step(len(rows))
    return [Pair(int(one), int(two), min(1.0, cosine)) for one, two, cosine in found.tolist()], total
