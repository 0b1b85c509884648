"""What a model folder is written of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def savable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state on the CPU, contiguous, none sharing its memory with another (tied embeddings do).

    Tensors that are so already are handed on as they are: a copy of a whole model would be the largest thing in memory.
    """
    found: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, value in state.items():
        ready = value.detach().cpu().contiguous()
        memory = ready.untyped_storage()
        if memory.data_ptr() in used or memory.nbytes() != ready.nbytes:
            ready = ready.clone(memory_format=torch.contiguous_format)
        used.add(ready.untyped_storage().data_ptr())
        found[name] = ready
    return found


def drop_key(file: Path, key: str) -> None:
    """Remove ``key``, under which transformers notes where on this machine it read a model."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.pop(key, None) is not None:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
