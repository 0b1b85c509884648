"""Build a model without drawing random weights, as its weights are read next."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWN = {
    *(Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_),
    *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_),
}


class Unset(TorchFunctionMode):
    """While open, put nan where random values are asked for, so that a value which no file fills in is noticed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Fill a tensor with nan, or pass another call on."""
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs).fill_(math.nan)
        if func not in _DRAWN:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        with torch.no_grad():
            return tensor if tensor.is_meta else tensor.fill_(math.nan)
