"""Depthwise convolutions with large kernels, against torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from everclip.config.models import Train
from everclip.models import depthwise, zoo
from everclip.models.passes import Passes
from tests.methods.stages import batch


def layer(channels: int, kernel: int | tuple[int, int], **more: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = more.pop("padding", tuple(side // 2 for side in sides))
    return nn.Conv2d(channels, channels, sides, padding=padding, groups=channels, **more).double()


def same(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A layer that pads as TensorFlow does, by its input."""
    made = Conv2dSame(channels, channels, kernel, stride, groups=channels, bias=False)
    return made.double()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("side", [1, 3, 6, 14])
@pytest.mark.parametrize(
    "made",
    [
        layer(4, 5, bias=False),
        layer(4, 5),
        layer(3, 7),
        layer(3, (5, 7)),
        layer(3, 5, padding=0),
        layer(3, 5, padding=4),
        layer(3, 5, stride=2),
        layer(3, 5, stride=2, padding=0),
        same(4, 5, 1),
        same(4, 5, 2),
    ],
    ids=str,
)
def test_the_same_values_and_gradients(made: nn.Conv2d, side: int, images: int) -> None:
    if made.padding == (0, 0) and side < 5:
        pytest.skip("smaller than the kernel")
    assert depthwise.suits(made)
    given = torch.randn(images, made.in_channels, side, side, dtype=torch.float64)

    def found(run: Any) -> list[Tensor]:
        own = copy.deepcopy(made)
        entered = given.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        values = run(own, entered)
        weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view_as(values)
        (values * weights).sum().backward()
        gradients = [parameter.grad for parameter in own.parameters()]
        assert entered.grad is not None
        return [values.detach(), entered.grad, *(gradient for gradient in gradients if gradient is not None)]

    ours, plain = found(depthwise.forward), found(lambda module, entered: module(entered))
    assert len(ours) == len(plain) >= 3
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs)


def test_what_is_as_fast_or_something_else_stays_torchs() -> None:
    assert not depthwise.suits(layer(4, 3)), "oneDNN has a fast way for 3 x 3"
    assert not depthwise.suits(layer(4, 5, stride=3))
    assert not depthwise.suits(layer(4, 5, dilation=2))
    assert not depthwise.suits(layer(4, 5, padding_mode="reflect"))
    assert not depthwise.suits(nn.Conv2d(4, 8, 5, groups=4))
    assert not depthwise.suits(nn.Linear(4, 4))
    frozen, large = layer(4, 5).requires_grad_(False), layer(4, 5)
    given = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    assert "Depthwise" not in str(depthwise.forward(frozen, given).grad_fn)
    assert "Depthwise" not in str(depthwise.forward(large, torch.randn(2, 4, 20, 20).double()).grad_fn)
    with torch.autocast("cpu", torch.bfloat16):
        assert "Depthwise" not in str(depthwise.forward(large, given).grad_fn)
    assert "Depthwise" in str(depthwise.forward(large, given).grad_fn)


def test_a_step_runs_them_and_then_they_are_as_before() -> None:
    clip = zoo.load("lite", 96)
    wide = [module for module in clip.model.visual.modules() if depthwise.suits(module)]
    assert len(wide) > 3
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    names, weights = zip(*clip.image_parameters(), strict=True)

    def gradients() -> tuple[Tensor, ...]:
        features = clip.encode_image(images)
        return torch.autograd.grad((features * torch.linspace(-1, 1, features.shape[1])).sum(), weights)

    with Passes(clip, Train()).open(batch([0, 1])):
        assert all("convolve" in vars(module) for module in wide)
        ours = gradients()
    assert not any("convolve" in vars(module) for module in wide)
    for name, mine, plain in zip(names, ours, gradients(), strict=True):
        assert (mine - plain).norm() <= 1e-4 * plain.norm() + 1e-6, name
