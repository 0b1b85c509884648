"""Convolve with the padding of TensorFlow's "same": just enough for ceil(side / stride) outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def same_padding(
    sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int]
) -> tuple[int, int, int, int]:
    """Return left, right, top and bottom padding of images of ``(height, width)``; an odd pixel goes to the end."""
    high, wide = (
        max((math.ceil(side / step) - 1) * step + width - side, 0)
        for side, width, step in zip(sides, kernel, stride, strict=True)
    )
    return wide // 2, wide - wide // 2, high // 2, high - high // 2


def padded(images: Float[Tensor, "b c h w"], module: nn.Conv2d) -> Float[Tensor, "b c i j"]:
    """Return images with the padding that ``module`` takes."""
    return F.pad(images, same_padding(images.shape[2:], module.kernel_size, module.stride))


class Conv2dSame(nn.Conv2d):
    """A convolution that pads by the size of its input, like timm's class of the same name."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the padded images' convolution."""
        images = padded(input, self)
        return F.conv2d(images, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
