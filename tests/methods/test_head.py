"""The linear head: what growing keeps, and weight alignment."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from everclip import plugins
from everclip.config import load_config
from everclip.methods.base.registry import method_class
from everclip.methods.shared.head import Head, kaiming
from everclip.runs.resolve import resolve
from tests.methods.stages import Course, same, state


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


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_new_rows_start_at_zero(name: str, toy: str, photos: str) -> None:
    fields = method_class(name).Config.model_fields
    if "head_init" not in fields:
        return
    head = ["method.head=linear"] if "head" in fields else []
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=2", f"method={name}", *head)
    for index in (0, 1):
        course.enter(index)
    found = [module for module in course.method.modules() if isinstance(module, Head) and module.labels]
    assert found
    assert not any(module.weight.any() or module.bias.any() for module in found)


def test_alignment_of_rows_that_are_zero_leaves_them() -> None:
    head = Head()
    head.grow([0, 1], torch.zeros(2, 4))
    head.align([1])
    assert not head.weight.isnan().any()


def test_a_head_learns_at_scale_100() -> None:
    """Separable features: zero rows at the default rate learn them within 100 steps, those before did not."""
    random = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(20, 64, generator=random), dim=1)
    labels = torch.arange(20).repeat(10)
    features = normalize(centres[labels] + 0.1 * torch.randn(200, 64, generator=random), dim=1)
    found = {}
    for defaults in (1, 2):
        config = resolve(
            load_config([f"defaults={defaults}", "method=icarl", "model=ViT-B-16:laion400m_e32"])
        )
        head = Head()
        torch.manual_seed(0)
        start = config.method.options["head_init"]
        assert config.train.lr_head is not None
        head.grow(range(20), kaiming(20, 64) if start == "kaiming" else torch.zeros(20, 64))
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.train.lr_head)
        for _ in range(100):
            optimizer.zero_grad()
            cross_entropy(head(features, 100.0), labels).backward()
            optimizer.step()
        found[defaults] = (head(features).argmax(1) == labels).double().mean().item()
    assert found[1] < 0.5
    assert found[2] > 0.99


def test_widening_keeps_what_was_learned() -> None:
    head = Head()
    head.grow([0, 1], torch.ones(2, 4))
    head.widen(4, "zero_shot")
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert head(features).detach().numpy() == pytest.approx(
        (features[:, :4] @ torch.ones(4, 2)).numpy(), abs=1e-6
    )
    head.widen(0, "zero")
    head.widen(8, "kaiming")
    assert head.weight.shape == (2, 16)
    assert torch.equal(head.weight[:, :4], torch.ones(2, 4))
    fresh = head.weight[:, 8:]
    assert 0 < fresh.abs().max() <= (3 / 16) ** 0.5
