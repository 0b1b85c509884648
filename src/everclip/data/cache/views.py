"""Make augmented views of pictures: shifted and mirrored, or cropped and recoloured as contrastive learning does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from everclip.seeding import generator

SCHEME = "shift_flip 1"
"""Version of fixed views; change the number when they are drawn differently."""


def shift_flip(
    images: UInt8[Tensor, "b 3 s s"], rng: np.random.Generator, which: NDArray[np.bool_] | None = None
) -> UInt8[Tensor, "b 3 s s"]:
    """Return each picture shifted (edges mirrored) and maybe flipped.

    Args:
        which: bool ``[n]``: which images of a batch these are; each then moves as it does in the whole batch.
    """
    which = np.ones(len(images), dtype=bool) if which is None else which
    shifts = rng.integers(0, 2 * _pad(images) + 1, size=(2, len(which)))
    flips = rng.random(len(which)) < 0.5
    return _moved(images, torch.from_numpy(shifts[:, which]), torch.from_numpy(flips[which]))


AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
"""Fraction of a picture that a crop has, and its width over its height."""
COLOUR, HUE, JITTERED, GREY = 0.4, 0.1, 0.8, 0.2
"""Most that brightness, contrast and saturation change by, and the hue in turns; how often they do; how often a picture
becomes grey."""
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def crop_colour(
    images: UInt8[Tensor, "b 3 s s"], rng: np.random.Generator, which: NDArray[np.bool_] | None = None
) -> UInt8[Tensor, "b 3 s s"]:
    """Return each picture cropped, resized back, maybe mirrored, recoloured, maybe grey: SimCLR's views with SupCon's
    numbers.

    Args:
        which: as for ``shift_flip``.
    """
    which = np.ones(len(images), dtype=bool) if which is None else which
    area, ratio, left, top, mirrored, jittered, grey = rng.random((7, len(which)))[:, which]
    colour = rng.uniform(1 - COLOUR, 1 + COLOUR, (3, len(which)))[:, which]
    turn = rng.uniform(-HUE, HUE, len(which))[which] * 2 * np.pi
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    ratio = np.exp(np.log(RATIO[0]) + (np.log(RATIO[1]) - np.log(RATIO[0])) * ratio)
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    # From the output's coordinates in [-1, 1] to the picture's: a crop is a scale and a shift, a mirror a sign.
    theta = np.zeros((len(area), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = np.where(mirrored < 0.5, -width, width)
    theta[:, 0, 2] = (2 * left - 1) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, (2 * top - 1) * (1 - height)
    grid = functional.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    found = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    still = jittered >= JITTERED
    factors = torch.from_numpy(np.where(still, 1, colour)).float()[:, :, None, None, None]
    found = _recoloured(found, factors, torch.from_numpy(np.where(still, 0, turn)).float())
    washed = _luma(found).expand_as(found)
    found = torch.where(torch.from_numpy(grey < GREY)[:, None, None, None], washed, found)
    return found.round().clamp(0, 255).to(torch.uint8)


def _luma(images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 1 s s"]:
    return torch.einsum("c,bcij->bij", _LUMA, images)[:, None]


def _recoloured(
    images: Float[Tensor, "b 3 s s"], factors: Float[Tensor, "3 b 1 1 1"], turn: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 s s"]:
    """Return brightness, contrast and saturation times ``factors``, then the hue turned, about the grey axis."""
    images = (images * factors[0]).clamp(0, 255)
    mean = _luma(images).mean((2, 3), keepdim=True)
    images = (mean + factors[1] * (images - mean)).clamp(0, 255)
    grey = _luma(images)
    images = (grey + factors[2] * (images - grey)).clamp(0, 255)
    rotation = torch.eye(3).repeat(len(images), 1, 1)
    rotation[:, 1, 1] = rotation[:, 2, 2] = turn.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -turn.sin(), turn.sin()
    return torch.einsum("bcd,bdij->bcij", torch.linalg.inv(_YIQ) @ rotation @ _YIQ, images).clamp(0, 255)


VIEWS = {"shift_flip": shift_flip, "crop_colour": crop_colour}
"""The values of ``train.augment`` other than ``none``."""


def fixed_view(images: UInt8[Tensor, "b 3 s s"], ids: Sequence[int], view: int) -> UInt8[Tensor, "b 3 s s"]:
    """Return a view of each picture: 0 is the picture itself, any other a shift and a flip fixed by image and view."""
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
    """Return pictures moved down and to the right by ``shifts`` less the largest shift, then mirrored."""
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
    """Return coordinates reflected into [0, side)."""
    index = index.abs()
    return torch.where(index >= side, 2 * side - 2 - index, index)
