"""Build the text tower of ``lite``, all-MiniLM-L6-v2: BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) with
mean pooling and a projection.

It has the modules of transformers under their names inside of open_clip's tower, and gives the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

WIDTH, HIDDEN, HEADS, LAYERS = 384, 1536, 12, 6
TOKENS, POSITIONS, SEGMENTS = 30522, 512, 2
PADDING = 0
_EPS, _DROPOUT = 1e-12, 0.1


class Embeddings(nn.Module):
    """Sum of the vectors of a token, its segment (always the first) and its place, normed."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(TOKENS, WIDTH, padding_idx=PADDING)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(SEGMENTS, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=_EPS)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, tokens: Int64[Tensor, "p length"]) -> Float[Tensor, "p length width"]:
        """Return what enters the first layer."""
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        found = self.word_embeddings(tokens) + self.token_type_embeddings(torch.zeros_like(tokens))
        return self.dropout(self.LayerNorm(found + self.position_embeddings(places)))


class SelfAttention(nn.Module):
    """Attention among the tokens of a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(
        self, hidden: Float[Tensor, "p length width"], mask: Bool[Tensor, "p 1 length length"] | None
    ) -> Float[Tensor, "p length width"]:
        """Return mixed values; ``mask`` says which tokens each token sees."""
        query, key, value = (
            part(hidden).view(*hidden.shape[:2], HEADS, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scale = (WIDTH // HEADS) ** -0.5
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return mixed.transpose(1, 2).reshape(hidden.shape)


class Added(nn.Module):
    """A linear layer with a residual connection around it, and the norm of the sum."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=_EPS)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(
        self, hidden: Float[Tensor, "p length c"], before: Float[Tensor, "p length width"]
    ) -> Float[Tensor, "p length width"]:
        """Return the normed sum."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + before)


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = Added(WIDTH)

    def forward(
        self, hidden: Float[Tensor, "p length width"], mask: Bool[Tensor, "p 1 length length"] | None
    ) -> Float[Tensor, "p length width"]:
        """Return its output."""
        return self.output(self.self(hidden, mask), hidden)


class Intermediate(nn.Module):
    """The hidden units of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, HIDDEN)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, hidden: Float[Tensor, "p length width"]) -> Float[Tensor, "p length c"]:
        """Return their activations."""
        return self.intermediate_act_fn(self.dense(hidden))


class Layer(nn.Module):
    """A transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = Intermediate()
        self.output = Added(HIDDEN)

    def forward(
        self,
        hidden_states: Float[Tensor, "p length width"],
        mask: Bool[Tensor, "p 1 length length"] | None = None,
    ) -> Float[Tensor, "p length width"]:
        """Return its output."""
        found = self.attention(hidden_states, mask)
        return self.output(self.intermediate(found), found)


class Encoder(nn.Module):
    """All layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(
        self, hidden: Float[Tensor, "p length width"], mask: Bool[Tensor, "p 1 length length"] | None
    ) -> Float[Tensor, "p length width"]:
        """Return the last layer's output."""
        for layer in self.layer:
            hidden = layer(hidden, mask)
        return hidden


class Output(NamedTuple):
    """The transformer's output."""

    last_hidden_state: Float[Tensor, "p length width"]


class Bert(nn.Module):
    """The transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder()

    def forward(
        self, input_ids: Int64[Tensor, "p length"], attention_mask: Int64[Tensor, "p length"]
    ) -> Output:
        """Return a vector for each token; no token sees those whose mask is 0."""
        seen = attention_mask.bool()
        # without a mask torch uses another kernel, whose last bits differ; an exported graph always has a mask
        whole = not torch.compiler.is_compiling() and bool(seen.all())
        mask = None if whole else seen[:, None, None, :].expand(-1, -1, seen.shape[1], -1)
        return Output(self.encoder(self.embeddings(input_ids), mask))


class MeanPooler(nn.Module):
    """The mean over all tokens but padding."""

    def forward(self, x: Output, attention_mask: Int64[Tensor, "p length"]) -> Float[Tensor, "p width"]:
        """Return a vector for each prompt."""
        total = (x.last_hidden_state * attention_mask.unsqueeze(-1)).sum(dim=1)
        return total / attention_mask.sum(-1, keepdim=True)


class TextConfig:
    """The config file of the transformer, which is written as it was read.

    Attributes:
        pad_token_id: the token that pads prompts.
    """

    pad_token_id = PADDING

    def __init__(self, content: bytes) -> None:
        self._content = content

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json."""
        Path(folder, "config.json").write_bytes(self._content)


class TextTower(nn.Module):
    """The transformer, mean pooling and the projection.

    Args:
        outputs: width of its features.
        config: that of the transformer.
    """

    def __init__(self, outputs: int, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Bert()
        self.pooler = MeanPooler()
        inner = (WIDTH + outputs) // 2
        layers = nn.Linear(WIDTH, inner, bias=False), nn.GELU(), nn.Linear(inner, outputs, bias=False)
        self.proj = nn.Sequential(*layers)

    def forward(self, tokens: Int64[Tensor, "p length"]) -> Float[Tensor, "p d"]:
        """Return features of any norm."""
        mask = (tokens != PADDING).long()
        return self.proj(self.pooler(self.transformer(tokens, mask), mask))
