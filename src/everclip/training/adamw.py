"""Run torch's AdamW without torch's compiler, which takes a second of processor time to import."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch
from torch.optim import Optimizer


class AdamW(torch.optim.AdamW):
    """Torch's AdamW, its methods without the wrapper that tells the compiler to skip them; nothing here compiles them.

    Torch would import its compiler for that wrapper alone, at the first call of any of these methods.
    """

    add_param_group: Any = unwrap(Optimizer.add_param_group)
    load_state_dict: Any = unwrap(Optimizer.load_state_dict)
    state_dict: Any = unwrap(Optimizer.state_dict)
    step: Any = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad: Any = unwrap(Optimizer.zero_grad)
