"""Run a transformer block's self-attention again, with added rows or a weight update; attend over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from everclip.errors import UserError
from everclip.methods.base.method import Clip
from everclip.methods.shared.frozen import dropped
from everclip.models.foreign import Attention, Block, CustomResidualAttentionBlock, ResidualAttentionBlock

PACKED = (nn.MultiheadAttention, Attention)
"""Attention modules with the weights of queries, keys and values in one parameter: torch's and open_clip's own."""


def attentions(model: nn.Module) -> list[Any]:
    """Return the self-attention of each transformer block, in the order of the modules."""
    kinds = ResidualAttentionBlock | CustomResidualAttentionBlock | Block
    return [module.attn for module in model.modules() if isinstance(module, kinds)]


def demand_blocks(clip: Clip, method: str, adds: str) -> None:
    """Refuse an image tower without transformer blocks for a method to add to. Raises UserError."""
    if not attentions(clip.model.visual):
        raise UserError(
            f"method={method} puts {adds} into the blocks of a vision transformer, but the image tower of"
            f" {clip.name} is none: use model=ViT-B-16:laion400m_e32 or another ViT, or another method"
        )


@contextmanager
def attending(model: nn.Module, options: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    """While open, run the first self-attentions of a model as ``attend``, each with one of ``options``."""
    with ExitStack() as hooks:
        for attention, more in zip(attentions(model), options, strict=False):

            def run(module: Any, given: Any, kwargs: Any, output: Any, more: Any = more) -> Any:
                found = attend(module, given[0], mask=kwargs.get("attn_mask"), **more)
                return (found, None) if isinstance(output, tuple) else found

            hooks.callback(attention.register_forward_hook(run, with_kwargs=True).remove)
        yield


def attend(
    module: Any,
    x: Float[Tensor, "b l w"],
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    change: Any = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b l w"]:
    """Return self-attention with the weights of torch's module, timm's or open_clip's own.

    Args:
        prefix: rows ``[b, p, w]`` before the keys and before the values.
        change: maps tokens to what is added to queries, keys and values, side by side.
        mask: added to the scores.
    """
    torchs, packed = isinstance(module, nn.MultiheadAttention), isinstance(module, PACKED)
    first = not torchs or module.batch_first
    given = x if first else x.transpose(0, 1)
    mapped = linear(given, module.in_proj_weight, module.in_proj_bias) if packed else module.qkv(given)
    if change is not None:
        mapped = mapped + change(given).to(mapped)
    query, key, value = mapped.chunk(3, dim=2)
    if prefix is not None:
        key, value = (
            torch.cat([rows.to(part), part], 1) for rows, part in zip(prefix, (key, value), strict=True)
        )
    heads = [part.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    if not torchs:
        norms = (module.ln_q, module.ln_k) if packed else (module.q_norm, module.k_norm)
        heads[0], heads[1] = norms[0](heads[0]), norms[1](heads[1])
    found = joined(module, scaled_dot_product_attention(*heads, attn_mask=mask), given)
    out = module.out_proj(found) if packed else module.proj(found)
    return out if first else out.transpose(0, 1)


def joined(
    module: Any, heads: Float[Tensor, "b h l d"], given: Float[Tensor, "b l w"]
) -> Float[Tensor, "b l v"]:
    """Return heads side by side, scaled, normalised and gated where open_clip's or timm's module does so."""
    if isinstance(module, Attention) and module.head_scale is not None:
        heads = heads * module.head_scale
    rows = heads.transpose(1, 2).flatten(2)
    if isinstance(module, Attention):
        return module.ln_inner(rows)
    # torch's module has neither, nor timm's of earlier versions
    norm, gate = getattr(module, "norm", None), getattr(module, "gate", None)
    rows = rows if norm is None else norm(rows)
    return rows if gate is None else rows * gate(given).sigmoid()


class Attend(nn.Module):
    """LayerNorm( Q + W_o softmax( Q W_q' (Q W_k')' / sqrt d ) Q W_v' + b ) for the tokens of each image.

    Dropout applies to the attention and to what is added.
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
        """Return outputs of the image's token and of both tokens of each class; dropout only with a generator."""
        # Images share all tokens but one: what depends on one token alone is computed once, W_o included, as
        # A (V W_o') = (A V) W_o'.
        count, size, shared = len(texts), len(images), torch.cat([texts, means, context])
        each = torch.cat([images, shared])
        inner = self.query(each) @ self.key(each).T * each.shape[1] ** -0.5
        values = self.value(each) @ self.out.weight.T
        image = torch.cat([inner[:size, :size].diagonal()[:, None], inner[:size, size:]], 1)[:, None]
        others = [inner[size:, :size].T[:, :, None], inner[size:, size:].expand(size, -1, -1)]
        weights = dropped(torch.cat([image, torch.cat(others, 2)], 1).softmax(2), self.dropout, random)
        mixed = weights[:, :, :1] * values[:size, None] + weights[:, :, 1:] @ values[size:]
        tokens = torch.cat([images[:, None], shared.expand(size, -1, -1)], 1)
        found = self.norm(tokens + dropped(mixed + self.out.bias, self.dropout, random))
        return found[:, 0], found[:, 1 : 1 + count], found[:, 1 + count : 1 + 2 * count]
