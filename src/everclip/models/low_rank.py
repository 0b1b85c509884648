"""Give a weight a low-rank update that linear layers apply without forming the sum.

``W + 2 B A`` as one matrix costs a gradient of W's own size before it is projected onto A and B. Computed apart, as
``x W'`` and ``(x A') (2 B)'``, W needs no gradient: a third of a layer's work is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map  # pyright: ignore[reportPrivateImportUsage]

SCALE = 2.0
"""alpha / r of LoRA."""
_FACTS = ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_nested")


class Updated(Tensor):
    """Stand for ``base + SCALE b a``: linear layers and 1 x 1 convolutions use the parts, anything else gets the sum.

    Attributes:
        base: ``[out, in]``, or ``[out, in, 1, 1]`` of a convolution; takes no gradient.
        a, b: ``[r, in]`` and ``[out, r]``.
    """

    base: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, base: Tensor, a: Tensor, b: Tensor) -> Updated:
        """Return the stand-in for a weight and its update."""
        made = torch.Tensor._make_subclass(cls, base.detach())
        made.base, made.a, made.b = base, a, b
        return made

    def whole(self) -> Tensor:
        """Return the sum, an ordinary tensor with the gradients of its parts."""
        return self.base + SCALE * (self.b @ self.a).view_as(self.base)

    def scaled(self, scale: Tensor) -> Updated:
        """Return the stand-in for the sum with each row scaled."""
        rows = scale.view(-1, *[1] * (self.base.ndim - 1))
        return Updated.of(self.base * rows, self.a, scale[:, None] * self.b)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle a torch function that was given a stand-in."""
        kwargs = kwargs or {}
        taken = _PARTS.get(func)
        if taken is not None and not isinstance(args[0], Updated):
            found = taken(*args, **kwargs)
            if found is not None:
                return found
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            fact = getattr(getattr(func, "__self__", None), "__name__", "")
            if getattr(func, "__name__", "") == "__get__" and fact in _FACTS:
                return func(*args, **kwargs)
        return func(*tree_map(_added, tuple(args)), **tree_map(_added, dict(kwargs)))


def _added(value: Any) -> Any:
    return value.whole() if isinstance(value, Updated) else value


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    assert isinstance(weight, Updated)
    return F.linear(inputs, weight.base, bias) + F.linear(F.linear(inputs, weight.a), SCALE * weight.b)


def _conv2d(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    if not isinstance(weight, Updated):
        return None
    rank, into = weight.a.shape
    narrow = F.conv2d(inputs, weight.a.view(rank, into, 1, 1), None, *args, **kwargs)
    wide = F.conv2d(narrow, (SCALE * weight.b).view(-1, rank, 1, 1))
    return F.conv2d(inputs, weight.base, bias, *args, **kwargs) + wide


_PARTS: dict[Any, Callable[..., Tensor | None]] = {F.linear: _linear, F.conv2d: _conv2d}


class LowRank(nn.Module):
    """The parametrization ``W + 2 B A`` of a weight whose first axis is the output.

    Args:
        weight: ``[out, in]`` or ``[out, in, 1, 1]``.
        rank: r.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out, into = weight.shape[0], weight[0].numel()
        self.a = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, into), a=5**0.5).to(weight))
        self.b = nn.Parameter(torch.zeros(out, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return Updated.of(weight, self.a, self.b)


def low_rank(module: nn.Module, weight: str, rank: int) -> None:
    """Give the weight called ``weight`` of a module a low-rank update that starts at zero."""
    parametrize.register_parametrization(module, weight, LowRank(getattr(module, weight), rank))


def fold(module: nn.Module) -> None:
    """Make every parametrized weight under ``module`` (LoRA) an ordinary one with its current value, in its old place.

    torch's remove_parametrizations would remove the property from a class that copies of the module share.
    """
    for part in list(module.modules()):
        if not parametrize.is_parametrized(part):
            continue
        weights: Any = part.parametrizations
        values = {name: nn.Parameter(getattr(part, name).detach()) for name in weights}
        plain = parametrize.type_before_parametrizations(part)
        del part.parametrizations
        part.__class__ = plain
        rest = dict(part._parameters)
        part._parameters.clear()
        part._parameters.update(values | rest)
