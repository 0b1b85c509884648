"""Join the two towers of ``lite``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from everclip.models.lite_towers.image import ImageTower
from everclip.models.lite_towers.text import POSITIONS, TOKENS, TextTower


class Lite(nn.Module):
    """An image and a text tower with a joint space, in place of open_clip's ``CustomTextCLIP``.

    Attributes:
        logit_scale: log(1 / temperature).
        context_length, vocab_size: tokens that the transformer has places for, and kinds of tokens.
    """

    logit_bias = None

    def __init__(self, visual: ImageTower, text: TextTower) -> None:
        super().__init__()
        self.visual = visual
        self.text = text
        self.context_length, self.vocab_size = POSITIONS, TOKENS
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, image: Float[Tensor, "b ..."], normalize: bool = False) -> Float[Tensor, "b d"]:
        """Return features of normalised images, of unit length on request."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Int64[Tensor, "p length"], normalize: bool = False) -> Float[Tensor, "p d"]:
        """Return features of token ids, of unit length on request."""
        features = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(
        self, image: Float[Tensor, "b ..."], text: Int64[Tensor, "p length"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "p d"], Float[Tensor, ""]]:
        """Return unit-length features of images and of texts, and 1 / temperature."""
        return (
            self.encode_image(image, normalize=True),
            self.encode_text(text, normalize=True),
            self.logit_scale.exp(),
        )
