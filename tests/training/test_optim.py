"""The optimizer step: groups, schedule, clipping, and what is left out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.loader import Phase
from everclip.errors import UserError
from everclip.models.clip import Clip
from everclip.models.tunings import tuning_of
from everclip.training.adamw import AdamW
from everclip.training.optim import MOST_WARMUP, Update
from everclip.training.plan import Plan
from everclip.training.restore import grow, load_model
from tests.running import configured


def update(toy: str, photos: str, *words: str, steps: int = 10) -> tuple[Update, Clip, Any]:
    """An update of the first task's only phase."""
    config = configured(f"data={photos}", f"model={toy}", "method=finetune", *words)
    plan = Plan.of(config)
    clip = load_model(plan, config.model)
    grow(plan, clip, plan.tasks[0])
    tuning_of(config.tune).begin(clip)
    plan.method.begin_task(clip, plan.tasks[0], plan.tasks[0].train)
    return Update(clip, plan.method, Phase(), config.train, steps), clip, plan.method


def moved(before: dict[str, Tensor], clip: Clip) -> set[str]:
    """Names of the parameters that are not as they were, without the digits of blocks."""
    return {name for name, now in clip.named_parameters() if not torch.equal(now, before[name])}


def weights(clip: Clip) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in clip.named_parameters()}


def one(clip: Clip) -> dict[str, Tensor]:
    """A loss that has a gradient of 1 for every number that trains."""
    total = sum(p.sum() for p in clip.parameters() if p.requires_grad)
    assert isinstance(total, Tensor)
    return {"loss": total}


def test_each_part_has_its_rate_and_vectors_are_not_decayed(toy: str, photos: str) -> None:
    found, clip, method = update(
        toy, photos, "method.head=linear", "train.lr=0.1", "train.lr_head=0.3", "train.weight_decay=0.5"
    )
    rates = {}
    for group in found.optimizer.param_groups:
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0)
    assert {rates[id(p)] for _, p in clip.image_parameters() if id(p) in rates} == {0.1}
    assert {rates[id(p)] for p in method.head.parameters() if id(p) in rates} == {0.3}


def test_a_rate_of_zero_freezes(toy: str, photos: str) -> None:
    found, clip, _ = update(toy, photos, "train.lr=0.01", "train.lr_text=0")
    before, text = weights(clip), {id(p) for _, p in clip.text_parameters()}
    found.step(one(clip), "here", [])
    names = {name for name, p in clip.named_parameters() if id(p) in text}
    assert names
    assert not moved(before, clip) & names
    assert moved(before, clip)
    with pytest.raises(UserError, match=r"^nothing to train"):
        update(toy, photos, "tune=head")


def test_warm_up_then_a_cosine_to_zero(toy: str, photos: str) -> None:
    found, *_ = update(toy, photos, "train.warmup=0.2", steps=20)
    rates = [found.factor(step) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    expected = [0.5 * (1 + math.cos(math.pi * (step - 4) / 16)) for step in range(4, 20)]
    assert rates[4:] == pytest.approx(expected)
    assert update(toy, photos, "train.warmup=1", steps=10_000)[0].warmup == MOST_WARMUP


def test_a_step_is_adamw_on_clipped_gradients(toy: str, photos: str) -> None:
    found, clip, _ = update(toy, photos, "train.clip_norm=0.5", "train.lr=0.01", "train.lr_text=0.02")
    other = {id(p): p.detach().clone().requires_grad_() for p in found.parameters}
    groups = [
        {
            **{key: group[key] for key in ("lr", "weight_decay")},
            "params": [other[id(p)] for p in group["params"]],
        }
        for group in found.optimizer.param_groups
    ]
    plain = torch.optim.AdamW(groups)
    for step in range(3):
        values, extra = found.step(one(clip), "here", [])
        count = sum(p.numel() for p in found.parameters)
        assert extra["grad_norm"] == pytest.approx(math.sqrt(count), rel=1e-4)
        assert set(values) == {"loss"}
        for group, base in zip(plain.param_groups, found.optimizer.param_groups, strict=True):
            group["lr"] = base["base"] * found.factor(step)
        for parameter in other.values():
            parameter.grad = torch.full_like(parameter, 0.5 / math.sqrt(count))
        plain.step()
    for parameter in found.parameters:
        if parameter is not clip.logit_scale:
            torch.testing.assert_close(
                parameter.detach(), other[id(parameter)].detach(), rtol=1e-4, atol=1e-6
            )
    assert all(p.grad is None for p in found.parameters)


def test_a_saved_state_goes_on_to_the_same_weights(toy: str, photos: str) -> None:
    first, clip, _ = update(toy, photos, "train.lr=0.01")
    first.step(one(clip), "here", [])
    saved, held = copy.deepcopy(first.state_dict()), copy.deepcopy(clip.state_dict())
    first.step(one(clip), "here", [])
    second, other, _ = update(toy, photos, "train.lr=0.01")
    other.load_state_dict(held)
    second.load_state_dict(saved)
    assert second.done == 1
    second.step(one(other), "here", [])
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), other.parameters(), strict=True))


def test_a_step_left_out_moves_the_schedule_alone(toy: str, photos: str) -> None:
    found, clip, _ = update(toy, photos)
    before = weights(clip)
    found.skip()
    assert found.done == 1
    assert not moved(before, clip)


def test_adamw_gives_the_bits_of_torchs_and_takes_its_state() -> None:
    torch.manual_seed(0)
    weights = [[torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))] for _ in range(2)]
    ours, theirs = (kind(w, fused=True) for kind, w in zip((AdamW, torch.optim.AdamW), weights, strict=True))
    for number in range(3):
        gradient = torch.randn(3, 4)
        for optimizer, (weight,) in ((ours, weights[0]), (theirs, weights[1])):
            optimizer.zero_grad()
            assert weight.grad is None
            weight.grad = gradient.clone()
            optimizer.step()
        mine, other = ours.state_dict(), theirs.state_dict()
        assert torch.equal(weights[0][0], weights[1][0])
        assert_close(mine["state"], other["state"], rtol=0, atol=0)
        assert mine["param_groups"] == other["param_groups"]
        if number == 0:
            ours.load_state_dict(copy.deepcopy(other))


def test_text_features_that_were_kept_do_not_outlive_a_step(toy: str, photos: str) -> None:
    found, clip, _ = update(toy, photos, "train.lr_text=0.1")
    clip.keep_features()
    trained = [p for p in clip.parameters() if p.requires_grad]
    clip.requires_grad_(False)
    before = clip.encode_text(["a photo of a cat."])
    for parameter in trained:
        parameter.requires_grad_(True)
    found.step(one(clip), "here", [])
    clip.requires_grad_(False)
    after = clip.encode_text(["a photo of a cat."])
    assert not torch.allclose(before, after)
    assert_close(after, copy.deepcopy(clip).encode_text(["a photo of a cat."]), atol=1e-6, rtol=0)
