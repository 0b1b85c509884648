"""Estimate the diagonal of a Fisher information, from losses one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from everclip.data.scenario import Task
from everclip.methods.base.method import Batch
from everclip.seeding import generator, hash64


def diagonal(
    losses: Iterable[Tensor], parameters: Mapping[str, Tensor], most: float | None
) -> dict[str, Tensor]:
    """Return the mean over ``losses`` of the squared gradient, at most ``most``; 0 for a parameter without gradient.

    Args:
        losses: scalars, each computed when asked for and released after use.
        parameters: leaves by name; they require gradients from here on.
    """
    leaves = [parameter.requires_grad_() for parameter in parameters.values()]
    sums, count = [torch.zeros_like(leaf) for leaf in leaves], 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient**2
        count += 1
    means = [(total / max(1, count)).clamp(max=math.inf if most is None else most) for total in sums]
    return dict(zip(parameters, means, strict=True))


def parts(batches: Iterable[Batch], task: Task, limit: int | None, single: bool) -> Iterator[Batch]:
    """Yield batches, or their images one by one; with a ``limit``, only the images with the lowest hashes."""
    ids = sorted(task.train.ids.tolist(), key=lambda sample: hash64("fisher", sample))
    chosen = set(ids[:limit])
    for batch in batches:
        rows = [row for row, sample in enumerate(batch.ids.tolist()) if sample in chosen]
        for part in [[row] for row in rows] if single else [rows]:
            if part:
                names = ("images", "labels", "domains", "ids", "current")
                yield replace(batch, **{name: vars(batch)[name][part] for name in names})


def drawn(logits: Float[Tensor, "1 c"], part: Batch) -> Tensor:
    """Return the column ``[1]`` of a label drawn from the model's softmax for a single image.

    The draw depends on the image's id, not on its place, and so not on how images are batched.
    """
    uniform = generator(part.seed, "fisher", int(part.ids[0])).random()
    below = logits.detach().softmax(1).cumsum(1) <= uniform
    return below.sum(1).clamp(max=logits.shape[1] - 1)
