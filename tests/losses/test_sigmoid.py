"""SigLIP's loss against a double loop and against open_clip's own."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import SigLipLoss

from everclip.losses.contrastive import sigmoid_loss


def _features(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, 5, 8, generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(image, dim=1), torch.nn.functional.normalize(text, dim=1)


def test_by_a_double_loop() -> None:
    image, text = _features(0)
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = 10.0 * float(image[i] @ text[j]) - 10.0
            total += math.log1p(math.exp(-logit if i == j else logit))
    assert sigmoid_loss(image, text, 10.0, -10.0).item() == pytest.approx(total / 5, rel=1e-12)


def test_as_open_clip_has_it() -> None:
    image, text = (part.requires_grad_() for part in _features(1))
    ours = sigmoid_loss(image, text, 7.0, -3.0)
    first = torch.autograd.grad(ours, (image, text))
    theirs = SigLipLoss()(image, text, torch.tensor(7.0), torch.tensor(-3.0))
    second = torch.autograd.grad(theirs, (image, text))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
