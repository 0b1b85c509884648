"""Features, batches and images made by hand, for tests of a method's loss without a model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from everclip.data.images import FileStore, ImageSet
from everclip.data.loader import Batch, Phase
from everclip.data.prompts import PHOTO, Prompts
from everclip.methods.base.method import Method

PROMPTS = Prompts(tuple("abcdef"), (PHOTO,))
S = [[0.30, 0.10, 0.05], [0.12, 0.28, 0.08], [0.02, 0.06, 0.25]]
"""The similarities of three pairs that golden numbers were computed from, rows images."""
STORE = FileStore(Path(), [f"{n}.jpg" for n in range(100)])


def batch(labels: Sequence[int], ids: Sequence[int] | None = None) -> Batch:
    """A batch with these labels and ids, and empty pictures."""
    count = len(labels)
    return Batch(
        torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        torch.tensor(labels),
        torch.zeros(count, dtype=torch.int64),
        torch.arange(count) if ids is None else torch.tensor(ids),
        torch.ones(count, dtype=torch.bool),
    )


def images(labels: Sequence[int]) -> ImageSet:
    """Images of these classes, ids 0, 1, ..."""
    every = np.arange(len(labels))
    return ImageSet(STORE, every, np.array(labels, dtype=np.int64), np.zeros_like(every), every)


def similarity(rows: list[list[float]] = S) -> Tensor:
    """These similarities in fp64."""
    return torch.tensor(rows, dtype=torch.float64)


def cosines(count: int, seed: int) -> Tensor:
    """fp64 similarities of random pairs, somewhat aligned."""
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 8, generator=random, dtype=torch.float64)
    text = image + torch.randn(count, 8, generator=random, dtype=torch.float64)
    return normalize(image, dim=1) @ normalize(text, dim=1).T


def step(method: Method, s: Tensor, on: Batch) -> tuple[Tensor, Tensor]:
    """The loss at similarities ``s``, and its gradient with respect to them."""
    leaf = s.clone().requires_grad_()
    # Against an orthonormal basis of captions, an image's features are its similarities.
    terms = method.loss({"image": leaf, "text": torch.eye(len(s), dtype=s.dtype)}, on, Phase())
    (value,) = terms.values()
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def log_means(losses: Tensor, among: Tensor, tau: float) -> Tensor:
    """log mean_{j in N_i} exp(l_ij / tau) of each anchor, one at a time."""
    return torch.stack(
        [
            (row[which] / tau).exp().mean().log() if which.any() else row.sum() * 0
            for row, which in zip(losses, among, strict=True)
        ]
    )


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state after a trip through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
