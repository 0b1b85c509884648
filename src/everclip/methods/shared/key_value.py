"""Update keys and values of each attention of both towers by matrices of low rank, kept from task to task (MG-CLIP)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.methods.shared.attention import attend, attentions


class LowRank(nn.Module):
    """x -> [ 0 ; B_k A_k x ; B_v A_v x ] / r, with A Xavier-uniform and B 0 at the start."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(2, rank, width))
        self.b = nn.Parameter(torch.zeros(2, width, rank))
        for part in self.a.data:
            nn.init.xavier_uniform_(part)

    def forward(self, x: Float[Tensor, "b l w"]) -> Float[Tensor, "b l v"]:
        parts = [x.to(a) @ a.T @ b.T / len(a) for a, b in zip(self.a, self.b, strict=True)]
        return torch.cat([torch.zeros_like(parts[0]), *parts], 2)


class KeyValue(nn.Module):
    """One update for each attention of a model, which itself is not changed."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        super().__init__()
        widths = [
            found.embed_dim if isinstance(found, nn.MultiheadAttention) else found.qkv.in_features
            for found in attentions(model)
        ]
        self.layers = nn.ModuleList(LowRank(width, rank) for width in widths)

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """Have each attention run with its update while it is open."""
        with ExitStack() as hooks:
            for attention, layer in zip(attentions(model), self.layers, strict=True):

                def run(module: Any, given: Any, kwargs: Any, output: Any, layer: nn.Module = layer) -> Any:
                    found = attend(module, given[0], change=layer, mask=kwargs.get("attn_mask"))
                    return (found, None) if isinstance(output, tuple) else found

                hooks.callback(attention.register_forward_hook(run, with_kwargs=True).remove)
            yield
