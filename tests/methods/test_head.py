"""The linear head: what growing keeps, and weight alignment."""

from __future__ import annotations

import pytest
import torch

from everclip.methods._head import Head
from tests.methods.stages import same, state


def test_alignment_gives_equal_mean_row_norms() -> None:
    head = Head()
    head.grow([4, 2, 9], torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    head.grow([1, 0], 5 * torch.randn(2, 8, generator=torch.Generator().manual_seed(1)))
    before = state(head)
    head.align([1, 0])
    norms = head.weight.norm(dim=1)
    assert norms[3:].mean().item() == pytest.approx(norms[:3].mean().item())
    assert torch.equal(head.weight[:3], before["weight"][:3])
    ratio = head.weight[3:] / before["weight"][3:]
    assert ratio.max().item() == pytest.approx(ratio.min().item())
    assert ratio.max() < 1
    assert torch.equal(head.bias, before["bias"])


@pytest.mark.parametrize("new", [[], [0, 1]])
def test_alignment_needs_rows_of_both_kinds(new: list[int]) -> None:
    head = Head()
    head.grow([0, 1], torch.randn(2, 4))
    before = state(head)
    head.align(new)
    assert same(state(head), before)


def test_widening_keeps_what_was_learned() -> None:
    head = Head()
    head.grow([0, 1], torch.ones(2, 4))
    head.widen(4, "zero_shot")
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert head(features).detach().numpy() == pytest.approx(
        (features[:, :4] @ torch.ones(4, 2)).numpy(), abs=1e-6
    )
    head.widen(8, "kaiming")
    assert head.weight.shape == (2, 16)
    assert torch.equal(head.weight[:, :4], torch.ones(2, 4))
    fresh = head.weight[:, 8:]
    assert 0 < fresh.abs().max() <= (3 / 16) ** 0.5
