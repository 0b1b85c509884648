"""Run a tower over a batch in pieces, each computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from everclip.errors import UserError
from everclip.models.attention import CpuAttention


def in_pieces(encode: Callable[[Any], Tensor], inputs: Tensor | Sequence[str], count: int) -> Tensor:
    """Return ``encode(inputs)``; a backward pass holds only one of ``count`` pieces of it at a time."""
    if count == 1 or len(inputs) < 2 or not torch.is_grad_enabled():
        return encode(inputs)
    size = -(-len(inputs) // count)
    pieces = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    return torch.cat([again(encode, piece) for piece in pieces])


def again(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the function's value; the backward pass recomputes it."""
    return checkpoint(function, *args, use_reentrant=False, context_fn=CpuAttention.again, **kwargs)


def watched(modules: Iterable[nn.Module]) -> bool:
    """Whether a method looks into modules with hooks, which may change what they give, or train."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def unwatched(tower: nn.Module, what: str) -> None:
    """Refuse a tower that a method looks into with hooks, as these would not see everything. Raises UserError."""
    if watched(tower.modules()):
        raise UserError(f"{what}, but the method looks inside the tower: leave it out, or use another method")
