"""Fold batch norm into the convolution before it, where neither of its parameters takes a gradient.

In evaluation mode batch norm is a scale and a shift per channel, and so part of the convolution before it:

    scale = gamma / sqrt(variance + eps)
    norm(convolve(x, W)) = convolve(x, scale W) + (beta - mean scale)

The parameters keep their places and names: each pass computes the product anew, over the weights, which are few
compared with the activations that no longer pass through a layer of their own. Where gamma or beta trains, the layers
run as usual; benchmarks/step.md has the numbers of both.

For a frozen depthwise convolution with a stride, whose padding is one wider at the right and at the bottom, the kernel
gets a leading row and column of zeros instead of padding a copy of the input: the sums are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everclip.models import depthwise
from everclip.models.foreign import name_of
from everclip.models.low_rank import Updated
from everclip.models.same import Conv2dSame, same_padding


class _Folded:
    """The common part of folded convolutions; ``norm`` holds the layer after them, which is not a child of theirs."""

    norm: tuple[Any]

    def forward(self: Any, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the norm's output."""
        found = self._weights()
        return self._normed(self.convolve(input)) if found is None else self.folded(input, *found)

    def _weights(self: Any) -> tuple[Tensor, Tensor] | None:
        """Return the kernel and bias with the norm in them; None where the norm trains."""
        (norm,) = self.norm
        if torch.is_grad_enabled() and (norm.weight.requires_grad or norm.bias.requires_grad):
            return None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight, bias = self.weight, norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        if isinstance(weight, Updated):
            return weight.scaled(scale), bias
        return weight * scale[:, None, None, None], bias

    def _normed(self: Any, images: Tensor) -> Tensor:
        """Apply the norm itself."""
        (norm,) = self.norm
        mean, variance = norm.running_mean, norm.running_var
        return F.batch_norm(images, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)


class FoldedConv2d(_Folded, nn.Conv2d):
    """A convolution and the batch norm after it; ``convolve`` is the convolution alone."""

    convolve = nn.Conv2d.forward

    def folded(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the norm's output, given a kernel and bias with the norm folded in."""
        return F.conv2d(input, weight, bias, self.stride, self.padding, 1, self.groups)


class FoldedConv2dSame(_Folded, Conv2dSame):
    """The same where the padding depends on the input's size."""

    convolve = Conv2dSame.forward

    def folded(self: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the norm's output, given a kernel and bias with the norm folded in."""
        left, right, top, bottom = same_padding(input.shape[2:], self.kernel_size, self.stride)
        trains = weight.requires_grad and torch.is_grad_enabled()
        exported = torch.compiler.is_compiling()  # torch.onnx loses a kernel that is padded
        if self.groups == 1 or trains or exported:
            input, padding = F.pad(input, (left, right, top, bottom)), (0, 0)
        else:
            weight, padding = F.pad(weight, (right - left, 0, bottom - top, 0)), (bottom, right)
        return F.conv2d(input, weight, bias, self.stride, padding, 1, self.groups)


class FoldedNorm(nn.BatchNorm2d):
    """What is left of a batch norm: nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution's output, which is normed already."""
        return input


class FoldedNormAct(nn.BatchNorm2d):
    """What is left of timm's batch norm with an activation: the activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution's output, activated."""
        return self.act(self.drop(input))


_LITE = "everclip.models.lite_towers.image"
_CONVOLUTIONS: dict[str, type] = {
    name_of(nn.Conv2d): FoldedConv2d,
    "timm.layers.conv2d_same.Conv2dSame": FoldedConv2dSame,
    name_of(Conv2dSame): FoldedConv2dSame,
}
_NORMS: dict[str, type] = {
    name_of(nn.BatchNorm2d): FoldedNorm,
    "timm.layers.norm_act.BatchNormAct2d": FoldedNormAct,
    f"{_LITE}.NormAct": FoldedNormAct,
}
depthwise.KINDS.update(map(name_of, _CONVOLUTIONS.values()))
_ROWS = {
    _LITE: ("DepthwiseSeparable", "EfficientNetLite0", "InvertedResidual"),
    "timm.models._efficientnet_blocks": (
        "ConvBnAct",
        "DepthwiseSeparableConv",
        "EdgeResidual",
        "InvertedResidual",
    ),
    "timm.models.efficientnet": ("EfficientNet",),
    "timm.models.resnet": ("BasicBlock", "Bottleneck", "ResNet"),
    "open_clip.modified_resnet": ("Bottleneck", "ModifiedResNet"),
}
"""Modules that run a convolution and, right after it, the batch norm that is their next child."""


def fold_norms(tower: nn.Module) -> None:
    """Fold the batch norms of an image tower where the order of its layers is known; copies of it are folded too."""
    for owner in tower.modules():
        known = type(owner).__name__ in _ROWS.get(type(owner).__module__, ())
        for first, second in zip(children := [*owner.children()], children[1:], strict=False):
            if (known or type(owner) is nn.Sequential) and _fits(first, second):
                first.norm = (second,)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
                first.__class__ = _CONVOLUTIONS[name_of(type(first))]
                second.__class__ = _NORMS[name_of(type(second))]


def _fits(first: nn.Module, second: nn.Module) -> bool:
    return (
        name_of(type(first)) in _CONVOLUTIONS
        and name_of(type(second)) in _NORMS
        and isinstance(first, nn.Conv2d)
        and isinstance(second, nn.BatchNorm2d)
        and first.padding_mode == "zeros"
        and not isinstance(first.padding, str)
        and first.dilation == (1, 1)
        and second.affine
        and second.track_running_stats
        and first.out_channels == second.num_features
    )
