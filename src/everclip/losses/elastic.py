"""Compute quadratic penalties on parameters, weighted by a Fisher information's diagonal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def penalty(
    values: Mapping[str, Tensor], anchors: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """Return sum_p F_p (theta_p - theta*_p)^2 (Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796), without
    lambda / 2.

    Args:
        values: parameters by name; rows that were appended since the anchors were taken are free.
        anchors, fisher: theta* and F, of equal shapes; no gradient flows into them.
    """
    moved = {name: first_rows(values[name], anchor) - anchor for name, anchor in anchors.items()}
    return torch.stack([(fisher[name] * move**2).sum() for name, move in moved.items()]).sum()


def merge(old: Tensor, fresh: Tensor, keep: float, take: float) -> Tensor:
    """Return ``keep * old + take * fresh``; rows that only ``fresh`` has stay as they are.

    ``keep + take = 1`` is a running mean over tasks (PyCIL), ``take = 1`` with ``keep = gamma`` online EWC (Schwarz et
    al. 2018, https://arxiv.org/abs/1805.06370).
    """
    if old.shape == fresh.shape:
        return keep * old + take * fresh
    return torch.cat([keep * old + take * first_rows(fresh, old), fresh[len(old) :]])


def first_rows(value: Tensor, like: Tensor) -> Tensor:
    """Return the rows of a grown parameter that ``like``, its earlier form, already had."""
    return value if value.shape == like.shape else value[: len(like)]
