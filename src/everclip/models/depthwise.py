"""Speed up depthwise convolutions with large kernels, whose weight gradient is slow in torch on a CPU.

The gradient of a kernel is a convolution too, of the inputs with the gradient of the outputs, image by image and
channel by channel, added up over images. When called as such a convolution, with images times channels as groups,
oneDNN computes it fast; when called as a weight gradient, only for 3 x 3 kernels.
docs/decisions/0008-exact-fast-step.md has the numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everclip.models.foreign import Conv2dSame, name_of
from everclip.models.same import padded

MOST_SIDE = {1: 14, 2: 6}
"""Largest side of the outputs (the kernels of that convolution), by stride; above it torch's way is faster."""

KINDS = {name_of(nn.Conv2d), "timm.layers.conv2d_same.Conv2dSame"}
"""Names of the classes of convolutions that are replaced."""


def suits(module: nn.Module) -> bool:
    """Return whether ``forward`` may be faster than the module's own forward pass."""
    return (
        isinstance(module, nn.Conv2d)
        and name_of(type(module)) in KINDS
        and module.groups == module.in_channels == module.out_channels
        and module.stride in ((1, 1), (2, 2))
        and module.dilation == (1, 1)
        and min(module.kernel_size) > 3
        and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
    )


def forward(module: nn.Conv2d, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """Return ``module(images)``, with the weight gradient computed the other way where that is faster."""
    padding, stride = module.padding, module.stride[0]
    if isinstance(module, Conv2dSame):
        images, padding = padded(images, module), (0, 0)
    gains = max(images.shape[2:]) <= MOST_SIDE[stride] * stride + max(module.kernel_size)
    if not gains or not module.weight.requires_grad or torch.is_autocast_enabled("cpu"):
        return F.conv2d(images, module.weight, module.bias, stride, padding, 1, module.groups)
    return _Depthwise.apply(images, module.weight, module.bias, stride, padding)  # pyright: ignore[reportReturnType]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.bias, ctx.stride, ctx.padding = bias is not None, stride, padding
        return F.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        strides, inputs = [ctx.stride, ctx.stride], None
        if ctx.needs_input_grad[0]:
            mask = [True, False, False]
            inputs = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, strides, ctx.padding, [1, 1], False, [0, 0], len(weight), mask
            )[0]
        # one image that has the channels of all of them, and a kernel for each
        kernels = gradient.contiguous().flatten(0, 1)[:, None]
        one = images.contiguous().flatten(0, 1)[None]
        found = F.conv2d(one, kernels, None, 1, ctx.padding, ctx.stride, len(kernels))
        height, width = weight.shape[2:]  # input rows at the end that the strides skip make one more
        each = found[0, :, :height, :width].unflatten(0, (len(images), len(weight)))
        return inputs, each.sum(0)[:, None], gradient.sum((0, 2, 3)) if ctx.bias else None, None, None
