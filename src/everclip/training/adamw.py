"""Run torch's AdamW without torch's compiler, which takes a second of the processor to import."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch
from torch.optim import Optimizer


class AdamW(torch.optim.AdamW):
    """Torch's AdamW, its methods without what tells the compiler to leave them alone; nothing here compiles them.

    Torch imports its compiler for that alone, at the first call of any of these.
    """

    add_param_group: Any = unwrap(Optimizer.add_param_group)
    load_state_dict: Any = unwrap(Optimizer.load_state_dict)
    state_dict: Any = unwrap(Optimizer.state_dict)
    step: Any = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad: Any = unwrap(Optimizer.zero_grad)
