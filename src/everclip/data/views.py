"""Augmented views of pictures: shifted by up to an eighth of the side, and mirrored half of the time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from everclip.seeding import generator

SCHEME = "shift_flip 1"
"""Of fixed views; another number for another way of drawing them."""


def shift_flip(
    images: UInt8[Tensor, "b 3 s s"], rng: np.random.Generator, which: NDArray[np.bool_] | None = None
) -> UInt8[Tensor, "b 3 s s"]:
    """Each picture shifted (edges mirrored) and maybe flipped.

    Args:
        which: bool ``[n]``: which images of a batch these are; each then moves as it does where all are there.
    """
    which = np.ones(len(images), dtype=bool) if which is None else which
    shifts = rng.integers(0, 2 * _pad(images) + 1, size=(2, len(which)))
    flips = rng.random(len(which)) < 0.5
    return _moved(images, torch.from_numpy(shifts[:, which]), torch.from_numpy(flips[which]))


def fixed_view(images: UInt8[Tensor, "b 3 s s"], ids: Sequence[int], view: int) -> UInt8[Tensor, "b 3 s s"]:
    """View 0 is the picture; any other is a shift and a flip that image and view alone decide, the same in all runs."""
    if view == 0:
        return images
    drawn = [generator(0, "fixed view", sample, view) for sample in ids]
    shifts = np.stack([rng.integers(0, 2 * _pad(images) + 1, size=2) for rng in drawn], axis=1)
    flips = np.array([rng.random() < 0.5 for rng in drawn])
    return _moved(images, torch.from_numpy(shifts), torch.from_numpy(flips))


def _pad(images: UInt8[Tensor, "b 3 s s"]) -> int:
    return max(1, images.shape[-1] // 8)


def _moved(
    images: UInt8[Tensor, "b 3 s s"], shifts: Int64[Tensor, "2 b"], flips: Bool[Tensor, " b"]
) -> UInt8[Tensor, "b 3 s s"]:
    """Pictures moved down and to the right by ``shifts`` less the largest shift, then mirrored."""
    side, pad = images.shape[-1], _pad(images)
    # Index arithmetic instead of padding: coordinates mirrored at the edges, one gather for the whole batch.
    base = torch.arange(side)
    rows = _mirror(base + shifts[0, :, None] - pad, side)
    columns = _mirror(base + shifts[1, :, None] - pad, side)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    picture = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    return images[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirror(index: Int64[Tensor, "b s"], side: int) -> Int64[Tensor, "b s"]:
    """Coordinates reflected into [0, side)."""
    index = index.abs()
    return torch.where(index >= side, 2 * side - 2 - index, index)
