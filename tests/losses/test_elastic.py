"""Quadratic penalties and merging of Fishers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from everclip.losses import elastic


def test_golden() -> None:
    """F = (2, 3), theta - theta* = (0.1, -0.2), lambda = 10: 5 (0.02 + 0.12)."""
    anchor = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    value = {"w": torch.tensor([1.1, 1.8], dtype=torch.float64)}
    fisher = {"w": torch.tensor([2.0, 3.0], dtype=torch.float64)}
    assert 10 / 2 * elastic.penalty(value, anchor, fisher).item() == pytest.approx(0.7, abs=1e-12)


def test_at_the_anchor_value_and_gradient_are_zero() -> None:
    value = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distance = elastic.penalty({"w": value}, {"w": value.detach().clone()}, {"w": torch.full((3, 4), 7.0)})
    distance.backward()
    assert distance == 0
    assert value.grad is not None
    assert torch.equal(value.grad, torch.zeros(3, 4))


def test_appended_rows_are_free() -> None:
    value = torch.ones(5, 2).requires_grad_()
    distance = elastic.penalty({"w": value}, {"w": torch.zeros(3, 2)}, {"w": torch.ones(3, 2)})
    distance.backward()
    assert distance == 6
    assert value.grad is not None
    assert value.grad[:, 0].tolist() == [2, 2, 2, 0, 0]


def test_scalars_count_like_any_parameter() -> None:
    assert elastic.penalty({"s": torch.tensor(3.0)}, {"s": torch.tensor(1.0)}, {"s": torch.tensor(0.5)}) == 2


def test_identical_fishers_merge_to_the_same_or_to_their_decayed_sum() -> None:
    fisher = torch.rand(3, 2, generator=torch.Generator().manual_seed(1))
    assert_close(elastic.merge(fisher, fisher, 0.75, 0.25), fisher)
    assert_close(elastic.merge(fisher, fisher, 0.9, 1.0), 1.9 * fisher)


def test_rows_of_new_classes_keep_their_fisher() -> None:
    merged = elastic.merge(torch.full((2, 1), 4.0), torch.full((3, 1), 8.0), 0.75, 0.25)
    assert merged[:, 0].tolist() == [5, 5, 8]
