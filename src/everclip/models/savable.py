"""Prepare the content of a model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from everclip.models.foreign import HFTokenizer
from everclip.models.text import hugging_face

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def savable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state on the CPU, contiguous, with no tensors that share memory (as tied embeddings do).

    Tensors that are so already are not copied: a copy of a whole model would be the largest thing in memory.
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


def write_folder(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an open_clip ``local-dir``: weights and config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(savable(state), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors writes files that only their owner may read
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)


def write_text_tower(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """Write the config and tokenizer of a Hugging Face text tower, without the path that they were read from."""
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(str(folder))
        _drop_key(folder / "tokenizer_config.json", "name_or_path")
    if (text := hugging_face(model)) is not None:
        text.config.save_pretrained(folder)
        _drop_key(folder / "config.json", "_name_or_path")


def _drop_key(file: Path, key: str) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.pop(key, None) is not None:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class _Noting:
    """A file that notes what ended a write, the disk or a signal, as the errors of torch.save do not tell."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it."""
        try:
            return self.file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Do nothing: closing the file flushes it."""


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a method's or a run's state so that ``weights_only`` loading accepts it.

    Raises OSError where the disk is full or fails, and what a signal raises.
    """
    with path.open("wb") as file:
        noting = _Noting(file)
        try:
            torch.save(state, noting)  # pyright: ignore[reportArgumentType]
        except RuntimeError as error:
            if noting.error is None:
                raise
            raise noting.error from error
