"""Run a transformer block's self-attention anew with something added: rows, or an update of its weights."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from everclip.models.foreign import Block, CustomResidualAttentionBlock, ResidualAttentionBlock


def attentions(model: nn.Module) -> list[Any]:
    """Return the self-attention of each transformer block, in the order of the modules."""
    kinds = ResidualAttentionBlock | CustomResidualAttentionBlock | Block
    return [module.attn for module in model.modules() if isinstance(module, kinds)]


def attend(
    module: Any,
    x: Float[Tensor, "b l w"],
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    change: Any = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b l w"]:
    """Return self-attention by the weights of torch's or timm's module.

    Args:
        prefix: rows ``[b, p, w]`` before the keys and before the values.
        change: tokens to what queries, keys and values, side by side, change by.
        mask: added to the scores.
    """
    torchs = isinstance(module, nn.MultiheadAttention)
    first = not torchs or module.batch_first
    given = x if first else x.transpose(0, 1)
    mapped = linear(given, module.in_proj_weight, module.in_proj_bias) if torchs else module.qkv(given)
    if change is not None:
        mapped = mapped + change(given).to(mapped)
    query, key, value = mapped.chunk(3, dim=2)
    if prefix is not None:
        key, value = (
            torch.cat([rows.to(part), part], 1) for rows, part in zip(prefix, (key, value), strict=True)
        )
    heads = [part.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    if not torchs:
        heads[0], heads[1] = module.q_norm(heads[0]), module.k_norm(heads[1])
    found = scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
    out = module.out_proj(found) if torchs else module.proj(found)
    return out if first else out.transpose(0, 1)
