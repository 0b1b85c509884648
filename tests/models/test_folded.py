"""Batch norm in the convolution before it: the same features and gradients, and nothing where it trains."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from everclip.models.folded import FoldedConv2d, FoldedConv2dSame, FoldedNorm, FoldedNormAct, fold_norms
from everclip.models.low_rank import fold, low_rank
from everclip.models.zoo import load

TOWERS = {
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=0),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=0),
    "resnet18": lambda: timm.create_model("resnet18", num_classes=0),
    "resnet50": lambda: timm.create_model("resnet50", num_classes=0),
    "RN50": lambda: open_clip.create_model("RN50").visual,
}


def tower(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A tower with statistics that are not those of a new one."""
    torch.manual_seed(0)
    made = TOWERS[name]().eval().to(dtype)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return made


def images(side: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def norms(module: nn.Module) -> list[nn.Module]:
    """Its batch norms that are left."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.BatchNorm2d) and not isinstance(part, FoldedNorm | FoldedNormAct)
    ]


@pytest.mark.parametrize("name", TOWERS)
def test_features_without_gradient_are_the_same(name: str) -> None:
    plain = tower(name)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    assert not norms(folded), "every norm of these towers stands behind its convolution"
    for side in (224,) if name == "RN50" else (64, 75):
        with torch.no_grad():
            expected, found = plain(images(side)), copy.deepcopy(folded)(images(side))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in folded.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_fp32_features_agree_to_1e_5() -> None:
    plain = tower("tf_efficientnet_lite0", torch.float32)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    with torch.no_grad():
        expected, found = plain(images(96, torch.float32)), folded(images(96, torch.float32))
    assert (expected - found).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "RN50"])
def test_training_norms_run_as_ever_bit_for_bit(name: str) -> None:
    plain = tower(name, torch.float32)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    side = 224 if name == "RN50" else 64
    results = []
    for module in (plain, folded):
        output = module(images(side, torch.float32))
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in module.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_frozen_norms_give_the_same_gradients_of_what_else_trains() -> None:
    plain = tower("tf_efficientnet_lite0")
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    results = []
    for module in (plain, folded):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.requires_grad_(False)
        module(images(64)).square().mean().backward()
        results.append([p.grad for p in module.parameters() if p.requires_grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-12)


def test_low_rank_updates_keep_their_parts_apart_and_agree() -> None:
    results = []
    for folding in (False, True):
        made = tower("tf_efficientnet_lite0").requires_grad_(False)
        if folding:
            fold_norms(made)
        torch.manual_seed(2)
        for module in list(made.modules()):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                low_rank(module, "weight", 2)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name.endswith((".0.a", ".0.b")))
            if name.endswith(".0.b"):
                nn.init.normal_(parameter, 0, 0.05)
        made(images(64)).square().mean().backward()
        gradients = [parameter.grad for parameter in made.parameters() if parameter.requires_grad]
        fold(made)
        with torch.no_grad():
            results.append([*gradients, made(images(64))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-12)


def test_a_new_value_of_a_norm_counts_at_once() -> None:
    made = tower("resnet18")
    fold_norms(made)
    with torch.no_grad():
        before = made(images(64))
        made.bn1.bias.add_(1)
        assert not torch.allclose(made(images(64)), before)


def test_a_clip_with_a_convolutional_tower_is_folded_and_copies_follow_their_own_weights() -> None:
    clip = load("lite", 96)
    assert any(isinstance(part, FoldedConv2d | FoldedConv2dSame) for part in clip.modules())
    assert not norms(clip)
    other = clip.copy_tower()
    pictures = torch.randint(0, 256, (2, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    with torch.no_grad():
        before = clip.encode_image(pictures, other)
        for part in clip.modules():
            if isinstance(part, FoldedNorm | FoldedNormAct):
                part.get_parameter("bias").add_(1)
        assert torch.equal(clip.encode_image(pictures, other), before)
        assert not torch.allclose(clip.encode_image(pictures), before)
