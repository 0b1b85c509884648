"""Attention as a CPU does it fastest, bf16 beside fp32, and the choice between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from everclip.models import precision, zoo
from everclip.models.attention import CpuAttention
from everclip.models.clip import Clip
from everclip.models.precision import Choice, Precision, attention, autocast, choose
from tests.marks import slow_after
from tests.methods.stages import TIMM, batch, clip_with
from tests.running import logged, run, run_for, timeless

WIDTH, LENGTH = 32, 20
PROMPTS = ["a cat", "a photo of a dog."]


def layer(frozen: bool = False) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, 4, batch_first=True).eval()
    nn.init.normal_(made.in_proj_bias)
    return made.requires_grad_(not frozen)


def tokens(count: int = 3) -> Tensor:
    return torch.randn(count, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


CAUSAL = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)


@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL.expand(12, -1, -1)], ids=["none", "causal", "by head"])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_the_same_function(mask: Tensor | None, frozen: bool) -> None:
    found = []
    for mode in (nullcontext(), CpuAttention()):
        attend, x = layer(frozen), tokens()
        with mode:
            output, weights = attend(x, x, x, need_weights=False, attn_mask=mask)
        assert weights is None
        wanted = [x, *(p for p in attend.parameters() if p.requires_grad)]
        found.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_what_is_no_plain_self_attention_is_torchs_own() -> None:
    attend, x = layer(), tokens()
    other, padding = torch.randn(3, 7, WIDTH), torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[:, -2:] = True
    upper = CAUSAL.isinf()
    calls: list[Callable[[], tuple[Tensor, Tensor | None]]] = [
        lambda: attend(x, other, other, need_weights=False),
        lambda: attend(x, x, x, need_weights=True),
        lambda: attend(x, x, x, key_padding_mask=padding, need_weights=False),
        lambda: attend(x, x, x, attn_mask=upper, need_weights=False),
        lambda: attend(x[0], x[0], x[0], need_weights=False),
    ]
    for call in calls:
        plain = call()
        with CpuAttention():
            ours = call()
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given", ["bool mask", "causal", "scale"])
def test_other_modules_attention_is_in_fp32(given: str) -> None:
    query, key, value = (torch.randn(2, 4, LENGTH, 8) for _ in range(3))
    named: dict[str, Any] = {
        "bool mask": {"attn_mask": ~CAUSAL.isinf()},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
    }[given]
    exact = F.scaled_dot_product_attention(query, key, value, **named)
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    with CpuAttention(), torch.autocast("cpu", torch.bfloat16):
        ours = F.scaled_dot_product_attention(query, key, value, **named)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, atol=2e-2, rtol=2e-2)


def test_the_weight_of_a_frozen_projection_is_not_repeated() -> None:
    """Torch repeats it for every token, and multiplies 20 matrices in place of one."""
    attend, x = layer(frozen=True), tokens().detach().bfloat16()

    def products(mode: Any) -> set[tuple[int, ...]]:
        found = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        with found, mode, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            attend(x, x, x, need_weights=False)
        return {tuple(event.input_shapes[0]) for event in found.events() or [] if event.name == "aten::bmm"}

    assert (LENGTH, 3, WIDTH) in products(nullcontext())
    assert (LENGTH, 3, WIDTH) not in products(CpuAttention())


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_features_stay_within_its_rounding(frozen: bool, toy: str, tmp_path: Path) -> None:
    timm = clip_with(tmp_path / "timm", **TIMM | {"timm_model_name": "test_vit", "image_size": 160})
    for spec in (toy, timm):
        clip = zoo.load(spec).requires_grad_(not frozen)
        images = clip.normalise(
            torch.randint(0, 255, (4, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
        )

        def features(kind: Precision, clip: Clip = clip, images: Tensor = images) -> Tensor:
            with attention(clip, kind), autocast(clip, kind):
                return torch.cat([clip.encode_image(images), clip.encode_text(PROMPTS)])

        exact, rounded = features("fp32"), features("bf16")
        assert rounded.dtype == torch.float32
        # 8 bits of mantissa: 0.4 % an operation, and some layers of them
        assert (rounded - exact).norm(dim=1).max() < 0.02
        assert not torch.equal(rounded, exact)


def test_the_mode_is_open_where_it_gains(toy: str) -> None:
    vit, lite = zoo.load(toy), zoo.load("lite", 96)  # which has no nn.MultiheadAttention
    assert isinstance(attention(vit, "fp32"), CpuAttention)
    assert not isinstance(attention(lite, "fp32"), CpuAttention)
    assert isinstance(attention(lite, "bf16"), CpuAttention)
    assert CpuAttention.again()[1].__class__ is nullcontext
    with CpuAttention():
        assert isinstance(CpuAttention.again()[1], CpuAttention)
    assert CpuAttention.again()[1].__class__ is nullcontext


def timed(patch: pytest.MonkeyPatch, fp32: float, bf16: float, convolution: float) -> list[str]:
    """Let each layer take so long."""
    kinds: list[str] = []

    def seconds(self: Any) -> float:
        kinds.append(type(self.module).__name__)
        if not torch.is_autocast_enabled("cpu"):
            return fp32
        return convolution if isinstance(self.module, nn.Conv2d) else bf16

    patch.setattr(precision._Layer, "seconds", seconds)
    return kinds


@pytest.mark.parametrize(
    ("bf16", "convolution", "expected"),
    [
        (0.5, 0.5, "bf16"),
        (0.89, 0.89, "bf16"),
        (0.95, 0.95, "fp32"),
        (2.0, 2.0, "fp32"),
        (0.5, 200.0, "bf16_text"),
    ],
)
def test_the_fastest_is_chosen(
    bf16: float, convolution: float, expected: str, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = timed(monkeypatch, 1.0, bf16, convolution)
    choice = choose(zoo.load(toy))
    assert choice.precision == expected
    assert choice.fp32
    assert choice.bf16
    assert choice.bf16_text
    both, text = choice.bf16 / choice.fp32, choice.bf16_text / choice.fp32
    assert convolution != bf16 or both == pytest.approx(bf16)
    assert choice.words() == f" (bf16 takes {both:.2f} of fp32's time, in the text tower only {text:.2f})"
    assert Choice("bf16").words() == ""
    assert {"Conv2d", "MultiheadAttention", "Linear", "LayerNorm", "GELU"} <= set(kinds)


def test_bf16_in_the_text_tower_alone(toy: str) -> None:
    clip = zoo.load(toy)
    images = clip.normalise(
        torch.randint(0, 255, (4, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    )

    def features(kind: Precision) -> tuple[Tensor, Tensor]:
        with precision.training(clip, kind):
            return clip.encode_image(images), clip.encode_text(PROMPTS)

    (image, text), (image_32, text_32), (_, text_16) = map(features, ("bf16_text", "fp32", "bf16"))
    assert torch.equal(image, image_32)
    assert torch.equal(text, text_16)
    assert not torch.equal(text, text_32)
    assert text.dtype == torch.float32
    assert not clip._way.text_bf16
    loss = (text * torch.linspace(-1, 1, text.numel()).view_as(text)).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in clip.text_parameters())


def test_layers_are_counted_and_run_as_they_are_called(toy: str) -> None:
    clip = zoo.load(toy)
    layers = precision._layers(clip.model.visual, lambda: clip.encode_image(clip.blank()))
    counts = {type(each.module).__name__: each.count for each in layers if each.count == 2}
    assert counts["MultiheadAttention"] == counts["GELU"] == 2  # two blocks
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    choice = choose(clip)
    assert choice.fp32 is not None
    assert choice.fp32 > 0
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert all(p.grad is None for p in clip.parameters())
    assert not any(module._forward_pre_hooks for module in clip.modules())


def test_the_text_tower_is_timed_on_the_tokens_it_gets(toy: str) -> None:
    clip = zoo.load(toy)
    layers = precision._layers(clip.model, lambda: clip.encode_text(precision._PROMPTS))
    (attend,) = [each for each in layers if isinstance(each.module, nn.MultiheadAttention)]
    assert attend.args[0].shape[1] < 12


@pytest.mark.parametrize("chosen", slow_after(1, ["fp32", "bf16", "bf16_text"]))
def test_auto_is_settled_once_and_kept(
    chosen: Precision, tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Clip] = []

    def once(clip: Clip, device: torch.device) -> Choice:
        asked.append(clip)
        return Choice(chosen, 2.0, 1.0, 1.5)

    words = (f"data={photos}", f"model={toy}", "method=gdro", "train.precision=auto")
    monkeypatch.setattr(precision, "choose", once)
    whole = run(tmp_path / "whole", *words)
    assert whole["precision"] == chosen
    assert len(asked) == 1
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (line,) = [found for found in map(json.loads, lines) if found["event"] == "precision"]
    assert line == {
        "event": "precision",
        "chosen": chosen,
        "seconds": {"fp32": 2.0, "bf16": 1.0, "bf16_text": 1.5},
    }
    assert run_for(tmp_path / "parts", 3, *words) is None
    monkeypatch.setattr(precision, "choose", lambda *_: Choice("fp32" if chosen == "bf16" else "bf16"))
    assert timeless(run(tmp_path / "parts", *words)) == timeless(whole)
    plain = run(tmp_path / "plain", *words[:-1], f"train.precision={chosen}")
    assert timeless(plain) == timeless(whole)


def test_a_piece_is_computed_again_in_the_same_precision(tmp_path: Path, toy: str, photos: str) -> None:
    words = (
        f"data={photos}",
        f"model={toy}",
        "method=clip",
        "train.precision=bf16_text",
        "train.captions=random",
    )
    whole, pieces = (
        [line["loss"]["clip"] for line in logged(tmp_path / name) if line["event"] == "step"]
        for name, more in (("whole", []), ("pieces", ["train.accumulate=2"]))
        if run(tmp_path / name, *words, *more)
    )
    assert len(whole) > 5
    assert pieces == pytest.approx(whole, rel=2e-2)


def test_auto_on_this_machine(tmp_path: Path, toy: str, photos: str) -> None:
    results = run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=clip", "train.precision=auto")
    assert results["precision"] in ("fp32", "bf16", "bf16_text")


def test_a_model_cut_below_its_last_block_is_timed(toy: str) -> None:
    clip = zoo.load(toy)
    clip.cut(1)
    layers = precision._layers(clip.model.visual, lambda: clip.encode_image(clip.blank()))
    assert "Conv2d" not in {type(each.module).__name__ for each in layers}
    assert choose(clip).bf16
    assert clip.encode_image(batch([0]).images).shape[0] == 1
