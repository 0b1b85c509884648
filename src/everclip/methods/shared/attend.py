"""Fuse an image's token with tokens of classes by one head of attention (PROOF)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.methods.shared.frozen import dropped


class Attend(nn.Module):
    """LayerNorm( Q + W_o softmax( Q W_q' (Q W_k')' / sqrt d ) Q W_v' + b ) for the tokens of each image.

    Args:
        width: d.
        dropout: of the attention and of what is added.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.xavier_normal_(self.out.weight)

    def forward(
        self,
        images: Float[Tensor, "b d"],
        texts: Float[Tensor, "c d"],
        means: Float[Tensor, "c d"],
        context: Float[Tensor, "k d"],
        random: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b c d"], Float[Tensor, "b c d"]]:
        """Return outputs of the image's token and of the classes' two; dropout only with a generator."""
        shared = torch.cat([texts, means, context]).expand(len(images), -1, -1)
        tokens, count = torch.cat([images[:, None], shared], 1), len(texts)
        weights = self.query(tokens) @ self.key(tokens).transpose(1, 2) * tokens.shape[2] ** -0.5
        weights = dropped(weights.softmax(2), self.dropout, random)
        found = self.norm(tokens + dropped(self.out(weights @ self.value(tokens)), self.dropout, random))
        return found[:, 0], found[:, 1 : 1 + count], found[:, 1 + count : 1 + 2 * count]
