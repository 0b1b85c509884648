"""CODA-Prompt: golden numbers, attention with a prefix by hand on both kinds of ViT, growth, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import Attention
from timm.layers.attention import Attention as Timms
from torch import nn
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.methods.shared.attention import attend, attentions
from everclip.methods.shared.prefix import orthogonal, prefixed, prompt, skew, split, weights
from everclip.models import zoo
from tests.methods.closed import near
from tests.methods.stages import SIDE, Course, batch, clip_with
from tests.methods.stages import rows as rows_of

A = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
K = torch.tensor([[0, 1], [2, 0]], dtype=torch.float64)
CUSTOM_VIT = {
    "layers": 2,
    "width": 32,
    "head_width": 16,
    "patch_size": 8,
    "image_size": SIDE,
    "qk_norm": True,
}
TIMM_VIT = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": SIDE}


def test_golden_weights_and_penalty() -> None:
    near(weights(torch.tensor([[1.0, 2.0]], dtype=torch.float64), A, K)[0], [0, 0.35112344])
    zero = torch.eye(16, dtype=torch.float64)[:2]
    near(skew(torch.cat([A, K, zero], 1)), 0.18 + 2.25)


@torch.no_grad()
def test_golden_attention() -> None:
    attention = nn.MultiheadAttention(2, 1, bias=False, batch_first=True).double()
    key, value = torch.eye(2).double(), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    attention.in_proj_weight.copy_(torch.cat([key, key, value.T]))
    attention.out_proj.weight.copy_(key)
    prefix = (torch.tensor([[[0.5, 0.5]]]).double(), torch.tensor([[[10.0, 0.0]]]).double())
    near(attend(attention, key[None], prefix=prefix)[0, 0], [4.32800818, 1.80948036])


@pytest.mark.parametrize("kind", ["open_clip", "custom", "timm"])
@torch.no_grad()
def test_a_prefix_of_no_rows_changes_nothing(kind: str, toy: str, tmp_path: Path) -> None:
    towers = {"custom": CUSTOM_VIT, "timm": TIMM_VIT}
    clip = zoo.load(toy if kind == "open_clip" else clip_with(tmp_path / "model", **towers[kind]))
    images = clip.normalise(torch.randint(0, 255, (3, 3, SIDE, SIDE), dtype=torch.uint8))
    before, first = clip.encode_image(images), attentions(clip.model.visual)[0]
    size = first.qkv.in_features if kind == "timm" else first.in_proj_weight.shape[1]
    with prefixed(clip.model.visual, [torch.zeros(3, 0, size)] * 2):
        assert_close(clip.encode_image(images), before, rtol=1e-4, atol=1e-5)
    with prefixed(clip.model.visual, [torch.randn(3, 8, size)]):
        assert not torch.allclose(clip.encode_image(images), before, atol=1e-3)
    assert torch.equal(clip.encode_image(images), before)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["torch", "open_clip", "timm"])
@torch.no_grad()
def test_attention_is_that_of_the_module(kind: str, masked: bool) -> None:
    """With all that a module may do besides: norms of queries, keys and values, scaled heads, a gate."""
    made: dict[str, Any] = {
        "torch": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        "open_clip": lambda: Attention(8, 2, qk_norm=True, scale_heads=True, inner_norm=True),
        "timm": lambda: Timms(8, 2, qk_norm=True, scale_norm=True, gated=True, norm_layer=nn.LayerNorm),
    }
    module, x = made[kind]().eval(), torch.randn(3, 5, 8)
    for parameter in module.parameters():
        parameter.normal_()
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    expected = module(x, x, x, attn_mask=mask)[0] if kind == "torch" else module(x, attn_mask=mask)
    assert_close(attend(module, x, mask=mask), expected, rtol=1e-4, atol=1e-5)


def test_new_rows_are_orthogonal_to_old_ones() -> None:
    old = [torch.randn(3, 60)]
    fresh = orthogonal(old, 2, 6)
    for part, known in zip(split(fresh), split(old[0]), strict=True):
        assert_close(part @ part.T, torch.eye(2), atol=1e-5, rtol=0)
        assert_close(part @ known.T, torch.zeros(2, 3), atol=1e-5, rtol=0)
    assert orthogonal(old, 5, 6).isfinite().all(), "no room is left"


def test_prompts_of_images(toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=coda_prompt").learn(0)
    method, first = course.method, [part.detach().clone() for part in course.method.parts]
    task = course.enter(1)
    (phase,) = course.learner.phases(task)
    course.step(course.update(phase), batch([*task.classes] * 2), phase)
    course.leave(task)
    assert len(method.parts) == 4, "two blocks, two tasks"
    assert all(torch.equal(part, other) for part, other in zip(method.parts, first, strict=False))
    rows, q = (
        torch.cat([method.parts[0], method.parts[2]]).detach(),
        method.query(course.clip, course.images()),
    )
    by_hand = []
    for image in q:
        total = torch.zeros(8, 32)
        for row in rows:
            a, k, p = row[:32], row[32:64], row[64:].view(8, 32)
            total += (image * a) @ k / ((image * a).norm() * k.norm()) * p
        by_hand.append(total)
    assert_close(prompt(q, rows), torch.stack(by_hand), rtol=1e-4, atol=1e-5)
    assert method.head.labels == course.seen
    assert (course.scores(*range(6)) == -torch.inf).all(0).sum() == 2


def test_rows_of_other_classes_stay_as_they_are(toy: str, photos: str) -> None:
    """Weight decay would shrink them, and with them the scores of old classes, in each later task."""
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=coda_prompt").learn(0)
    task, old = course.enter(1), course.seen
    (phase,) = course.learner.phases(task)
    before = [rows_of(course.method.head, labels) for labels in (old, [*task.classes])]
    assert before[0].any()
    update = course.update(phase)
    assert any(group["weight_decay"] > 0 for group in update.optimizer.param_groups)
    for _ in range(2):
        course.step(update, batch([*task.classes] * 2), phase)
        course.method.after_step(course.clip)
    assert torch.equal(rows_of(course.method.head, old), before[0])
    assert not torch.equal(rows_of(course.method.head, [*task.classes]), before[1])


def test_a_tower_without_blocks_is_refused(convolutional: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={convolutional}", "method=coda_prompt")
    with pytest.raises(UserError, match=r"^method=coda_prompt puts prompts .* use model=ViT-B-16"):
        course.enter(0)
