"""Mix the probabilities of zero-shot CLIP with the scores of a regression (RAIL)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from everclip.methods.base.method import Classifier, Clip, Images


class Fused(Classifier):
    """Mix zero-shot probabilities with the scores of a regression.

    Args:
        text: unit-length embeddings of the names in the softmax.
        known: which of these have been trained.

    Attributes:
        columns: the names that are asked for; regress: features to r of these.
    """

    def __init__(
        self, clip: Clip, text: Float[Tensor, "n d"], known: Bool[Tensor, " n"], beta: float
    ) -> None:
        super().__init__()
        self.clip, self.text, self.known, self.beta = clip, text, known, beta
        self.scale = self.to_logits = clip.logit_scale.exp().item()
        self.columns = [*range(len(text))]
        self.regress: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        return self.mix(self.clip.encode_image(images))

    def mix(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Return the scores of unit-length features."""
        p = (self.scale * features @ self.text.T).softmax(1)
        seen = self.known[p.argmax(1)][:, None]
        p = p[:, self.columns]
        if self.regress is None:
            return p
        mixed = (1 - self.beta) * p + self.beta * self.regress(features).to(p)
        return torch.where(seen, mixed, p)


def gaussian(
    one: Float64[Tensor, "b d"], other: Float64[Tensor, "n d"], gamma: float
) -> Float64[Tensor, "b n"]:
    """exp(-g |a - b|^2) of all pairs of rows."""
    return (-gamma * torch.cdist(one, other).square()).exp()
