"""Build the image tower of ``lite``, EfficientNet-Lite0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946).

It has timm's modules under timm's names inside of open_clip's tower, and gives the same bits.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from everclip.models.same import Conv2dSame

WIDTH = 1280
STEM = 32
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of each stage: blocks, side of the depthwise kernel, stride of the first block, expansion, channels."""
_EPS = 1e-3


class NormAct(nn.BatchNorm2d):
    """Batch norm, then ReLU6 or nothing; ``models.folded`` folds the norm into the convolution before it."""

    def __init__(self, channels: int, activated: bool = True) -> None:
        super().__init__(channels, eps=_EPS)
        self.drop = nn.Identity()
        self.act = nn.ReLU6(inplace=True) if activated else nn.Identity()

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the activations."""
        return self.act(self.drop(super().forward(input)))


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)
    return Conv2dSame(inputs, outputs, kernel, stride, groups=groups, bias=False)


class DepthwiseSeparable(nn.Module):
    """The first block: one convolution per channel, then one across channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _convolution(inputs, inputs, kernel, groups=inputs)
        self.bn1 = NormAct(inputs)
        self.aa, self.se = nn.Identity(), nn.Identity()
        self.conv_pw = _convolution(inputs, outputs)
        self.bn2 = NormAct(outputs, activated=False)
        self.drop_path = nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Return the block's output."""
        return self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))


class InvertedResidual(nn.Module):
    """Every other block: more channels, one convolution for each of them, fewer channels, and the input added."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_skip = stride == 1 and inputs == outputs
        self.conv_pw = _convolution(inputs, inner)
        self.bn1 = NormAct(inner)
        self.conv_dw = _convolution(inner, inner, kernel, stride, inner)
        self.bn2 = NormAct(inner)
        self.aa, self.se = nn.Identity(), nn.Identity()
        self.conv_pwl = _convolution(inner, outputs)
        self.bn3 = NormAct(outputs, activated=False)
        self.drop_path = nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the block's output."""
        found = self.bn1(self.conv_pw(x))
        found = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(found))))
        return found + x if self.has_skip else found


def _stages() -> nn.Sequential:
    stages, inputs = [], STEM
    for count, kernel, first, expansion, outputs in STAGES:
        blocks: list[nn.Module] = []
        for number in range(count):
            stride = 1 if number else first
            if expansion == 1:
                blocks.append(DepthwiseSeparable(inputs, outputs, kernel))
            else:
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride, expansion))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


class GlobalPool(nn.Module):
    """The mean over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Return a vector for each image."""
        return self.flatten(self.pool(x))


class EfficientNetLite0(nn.Module):
    """The trunk: stem, seven stages, head, pooling.

    Attributes:
        num_features: width of its output.
    """

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _convolution(3, STEM, 3, 2)
        self.bn1 = NormAct(STEM)
        self.blocks = _stages()
        self.conv_head = _convolution(STAGES[-1][-1], WIDTH)
        self.bn2 = NormAct(WIDTH)
        self.global_pool = GlobalPool()
        self.classifier = nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return what comes after the pooling: nothing."""
        return self.classifier

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return activations before the pooling; ``x`` are kept activations where the lower part is cut off."""
        return self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x)))))

    def forward_head(self, x: Float[Tensor, "b ..."], pre_logits: bool = False) -> Float[Tensor, "b ..."]:
        """Return features of activations; ``pre_logits`` leaves out the classifier, which is none."""
        found = self.global_pool(x)
        return found if pre_logits else self.classifier(found)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return features of normalised images."""
        return self.forward_head(self.forward_features(x))


class ImageTower(nn.Module):
    """The trunk and, as the features are not projected, a head without layers.

    Args:
        side: of its input in pixels.
        preprocess_cfg: how pictures become its input.
    """

    def __init__(self, side: int, preprocess_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.image_size = (side, side)
        self.preprocess_cfg = preprocess_cfg
        self.trunk = EfficientNetLite0()
        self.head = nn.Sequential()

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return features of normalised images."""
        return self.head(self.trunk(x))
