"""CLIP's own loss, used for fine-tuning (FLYP, Goyal et al. 2023); or SigLIP's.

    softmax   mean of the cross-entropies image -> caption and caption -> image over the batch, at the learned scale
    sigmoid   - (1/B) sum_ij log sigmoid( y_ij (t s(i,j) + b) ),   y_ij = 1 where i = j, else -1

Both towers and the logit scale are trained; every other pair of the batch is a negative, even one of the same class, as
in FLYP. The first equals GCL with gamma = 1 and the pair itself among its negatives, up to a factor of 2 tau. The
second judges each pair by itself, with a scale t and a bias b that are learned at train.lr_head. They start at 10 and
-10, as in the paper, which trains from scratch, or at the model's own values if it has a bias. A model trained with a
softmax needs other values: with these, pairs are pulled together long before others are pushed apart, so tune
method.scale.

    Parameters  none; with objective=sigmoid two numbers
    State       none; with objective=sigmoid these
    Passes      1 of the image tower; 1 of the text tower for each class of the batch
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2212.00638, sigmoid https://arxiv.org/abs/2303.15343
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everclip.config import MethodConfig
from everclip.losses.contrastive import clip_loss, sigmoid_loss
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Method, Phase, Prompts, Task, pairs


class ClipLoss(Method):
    """Symmetric cross-entropy of image-caption pairs, or a decision on each pair."""

    class Config(MethodConfig):
        objective: Literal["softmax", "sigmoid"] = Field(
            default="softmax", description="cross-entropy over the batch (CLIP), or of each pair (SigLIP)"
        )
        scale: float | None = Field(
            default=None,
            gt=0,
            description="initial scale of sigmoid; none: the model's if it has a bias, else 10",
        )
        bias: float | None = Field(
            default=None, description="initial bias of sigmoid; none: the model's if it has one, else -10"
        )

    capabilities = Capabilities(pairs=True)
    config: Config
    passes = Passes(text="batch")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.log_scale: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None

    def grow(self, clip: Clip, task: Task) -> None:
        """Make the scale and the bias of sigmoid before the first task."""
        if self.config.objective == "softmax" or self.bias is not None:
            return
        own = getattr(clip.model, "logit_bias", None)
        scale, bias = self.config.scale, self.config.bias
        if scale is None:
            scale = 10.0 if own is None else clip.logit_scale.exp().item()
        if bias is None:
            bias = -10.0 if own is None else own.item()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), device=clip.device))
        self.bias = nn.Parameter(torch.tensor(float(bias), device=clip.device))

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        if self.log_scale is None or self.bias is None:
            yield from super().trainable(clip, phase)
            return
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from (parameter for _, parameter in clip.text_parameters())
        yield from (self.log_scale, self.bias)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return pairs(clip, self.prompts, batch)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if self.log_scale is None or self.bias is None:
            return {"clip": clip_loss(features["image"], features["text"], features["scale"])}
        scale = self.log_scale.exp()
        return {"sigmoid": sigmoid_loss(features["image"], features["text"], scale, self.bias)}

    def diagnostics(self) -> dict[str, float]:
        if self.log_scale is None or self.bias is None:
            return {}
        return {"scale": self.log_scale.exp().item(), "bias": self.bias.item()}
