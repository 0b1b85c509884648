"""Low-rank updates of a module become its weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def fold(module: nn.Module) -> None:
    """Make every parametrized weight under ``module`` (LoRA) an ordinary one with its present value, in its old place.

    Not torch's remove_parametrizations: that takes the property off a class that copies of the module share.
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
