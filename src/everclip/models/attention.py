"""Compute attention in the fastest way on a CPU, for any module.

Two things are changed, and both are the same mathematics:

- ``nn.MultiheadAttention`` hands its projection a transposed input. Where the weight takes no gradient, torch then
  repeats the weight for every token; under bf16 autocast that copy makes a frozen ViT-B/32 ten times slower than
  fp32. Here the projection gets its input as it lies in memory.
- Scores, softmax and weighted values are computed in fp32, under bf16 autocast too: these products are small, so bf16
  units gain nothing there, and torch's bf16 kernel for their backward pass takes twice as long.

docs/decisions/0008-exact-fast-step.md has the numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
_DEFAULTS = {name: p.default for name, p in _SIGNATURE.parameters.items() if p.default is not p.empty}
_PLAIN = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "need_weights", "use_separate_proj_weight")
"""Arguments that plain self-attention leaves empty."""


class CpuAttention(TorchFunctionMode):
    """While open, run attention on the CPU as the module's docstring says; pass all other calls on."""

    _open: ClassVar[int] = 0

    def __enter__(self) -> CpuAttention:
        CpuAttention._open += 1
        return super().__enter__()

    def __exit__(self, *failure: object) -> None:
        CpuAttention._open -= 1
        super().__exit__(*failure)

    @classmethod
    def again(cls) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Return what ``checkpoint`` opens for the first computation and for the recomputation.

        The recomputation happens in a backward pass, which torch runs with the mode closed.
        """
        return nullcontext(), cls() if cls._open else nullcontext()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for each of torch's functions."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _in_fp32(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            given = _DEFAULTS | _SIGNATURE.bind(*args, **kwargs).arguments
            if _is_plain(given):
                return _self_attention(given), None
        return func(*args, **kwargs)


def _in_fp32(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return ``scaled_dot_product_attention`` in fp32; the result has the query's type."""
    with torch.autocast(query.device.type, enabled=False):
        rest = [_float(argument) for argument in args]
        named = {name: _float(argument) for name, argument in kwargs.items()}
        found = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), *rest, **named)
    return found.to(query.dtype)


def _float(argument: Any) -> Any:
    """Return a floating-point tensor, such as a mask, in fp32; anything else unchanged."""
    return argument.float() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _is_plain(given: Mapping[str, Any]) -> bool:
    """Return whether a call is self-attention of a batch, without dropout and without anything unusual."""
    query = given["query"]
    mask = given["attn_mask"]
    same = given["key"] is query and given["value"] is query and query.ndim == 3
    if mask is not None and not mask.is_floating_point():  # what True means differs between the two functions
        return False
    dropped = given["training"] and given["dropout_p"] > 0
    fixed = given["static_k"] is not None or given["static_v"] is not None or given["is_causal"]
    return same and not dropped and not fixed and not any(_given(given[name]) for name in _PLAIN)


def _given(argument: Any) -> bool:
    return isinstance(argument, Tensor) or bool(argument)


def _self_attention(given: Mapping[str, Any]) -> Float[Tensor, "l b d"]:
    """Return the output of ``F.multi_head_attention_forward``."""
    tokens, heads, mask = given["query"].transpose(0, 1), given["num_heads"], given["attn_mask"]
    batch, length, _ = tokens.shape
    if mask is not None and mask.ndim == 3:
        mask = mask.view(batch, heads, length, length)
    packed = F.linear(tokens, given["in_proj_weight"], given["in_proj_bias"])
    query, key, value = packed.float().view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = _in_fp32(query, key, value, attn_mask=mask).transpose(1, 2).reshape(batch, length, -1)
    return F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"]).transpose(0, 1)


@contextmanager
def in_bf16(device: str) -> Iterator[None]:
    """While open, compute in bf16 on this kind of device, with fast attention on a CPU."""
    with CpuAttention() if device == "cpu" else nullcontext(), torch.autocast(device, torch.bfloat16):
        yield
