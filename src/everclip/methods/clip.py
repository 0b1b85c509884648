"""CLIP's own loss: fine-tune as you pretrain (FLYP, Goyal et al. 2023).

    loss = mean of the cross-entropies image -> caption and caption -> image over the batch, at the learned scale

Both towers and the logit scale are trained; every other pair of the batch is a negative, of the same class too, as in
FLYP. Equal to GCL with gamma = 1 and the pair itself among its negatives, up to a factor of 2 tau.

    Parameters  none
    State       none
    Passes      1 of the image tower; 1 of the text tower for each class of the batch
    Exemplars   trains on exemplars beside new images

Paper: https://arxiv.org/abs/2212.00638
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from everclip.losses.contrastive import clip_loss
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Method, MethodConfig, Phase, pairs


class ClipLoss(Method):
    """Symmetric cross-entropy of image-caption pairs."""

    class Config(MethodConfig):
        """No options."""

    passes = Passes(text="batch")

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return pairs(clip, self.prompts, batch)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return {"clip": clip_loss(features["image"], features["text"], features["scale"])}
