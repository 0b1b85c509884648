"""Distances to stored outputs."""

from __future__ import annotations

import pytest
import torch

from everclip.losses.distill import known_outputs


def test_golden() -> None:
    stored = torch.tensor([[2.0, 0, 1], [1, 1, 0]], dtype=torch.float64)
    now = torch.tensor([[1.0, 0, 1], [1, 2, 0]], dtype=torch.float64)
    assert known_outputs(now, stored).mean().item() == pytest.approx(1 / 3)


def test_columns_that_came_later_are_not_compared() -> None:
    stored, now = torch.zeros(2, 2), torch.tensor([[1.0, 1, 50], [2, 0, 9]]).requires_grad_()
    distance = known_outputs(now, stored, 3.0)
    assert distance.tolist() == [9, 18]
    (gradient,) = torch.autograd.grad(distance.sum(), now)
    assert gradient[:, 2].tolist() == [0, 0]
