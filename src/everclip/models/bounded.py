"""Bound a model by its weights: whatever its config claims, it is no larger than they are, or is not built.

The model is built without memory first (torch's meta device, 0.1 s). Building stops as soon as the model outgrows its
weights file; afterwards each tensor must have the shape that it has in that file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from everclip.errors import UserError, shown
from everclip.models.foreign import open_clip
from everclip.models.states import refuse_larger
from everclip.system.reading import JSON_BYTES, MIB, Unreadable, open_regular, read_json, strange

SPARE = 1 << 26
"""Number of values that a model may have besides its weights: masks, buffers."""
MOST_PIXELS, MOST_TOKENS = 4096, 20_000
"""Largest side of an image in pixels; most patches of an image or tokens of a text (attention takes the square)."""
MOST_TENSORS = 5000
_HEADER = 100 * MIB
_TEXTS = {".json", ".txt", ".model", ".jinja"}
"""Files that are read as a whole."""

Shapes = Mapping[str, tuple[int, ...]]


def check_files(folder: Path, config: str) -> None:
    """Refuse a model folder with a pipe, a device, a very large text file or an unreadable config. Raises UserError."""
    wrong = strange(folder)
    try:
        read_json(folder / config)
        texts = (file for file in folder.iterdir() if file.suffix in _TEXTS)
        large = [file.name for file in texts if file.exists() and file.stat().st_size > JSON_BYTES]
        wrong = wrong or (f"{large[0]} is larger than {JSON_BYTES >> 20} MiB" if large else "")
    except Unreadable as error:
        wrong = f"{config} cannot be read: {error}"
    except OSError as error:
        wrong = f"{error.filename} cannot be read: {error.strerror}"
    if wrong:
        raise UserError(f"model: the folder {folder} cannot be used ({wrong}): use another copy")


def shapes_of(path: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file, from its header. Raises Unreadable."""
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= min(_HEADER, path.stat().st_size):
            raise Unreadable(f"{path.name} is not a safetensors file")
        header = file.read(size)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {str(name): tuple(map(int, entry["shape"])) for name, entry in entries.items()}
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError, OverflowError) as error:
        raise Unreadable(f"{path.name} is not a safetensors file") from error
    return found


def check(
    source: str,
    model_cfg: Mapping[str, Any],
    weights: Path,
    options: Mapping[str, Any],
    image_size: int | None = None,
) -> None:
    """Refuse a model whose config does not match its weights. Raises ValueError, Unreadable, or what building it
    raises.

    Args:
        source: open_clip's name for it.
        model_cfg: its config.
        weights: the file that its weights are read from.
        options: those of ``create_model`` that do not change the model's size.
        image_size: side of the pictures, where it is not the config's; a stranger's folder may name it, too.
    """
    _check_tokens(model_cfg, image_size)
    found = shapes_of(weights) if weights.suffix == ".safetensors" else _shapeless(weights)
    most = weights.stat().st_size  # a value takes at least a byte
    tensors = min(len(found) or MOST_TENSORS, MOST_TENSORS)
    unread: dict[str, Any] = {"load_weights": False, "pretrained_text": False, "device": "meta"}
    with torch.device("meta"), within(2 * most + SPARE, 2 * tensors + 1000):
        model = open_clip.create_model(source, **unread, **options)
    for name, value in model.state_dict().items():
        there = found.get(name, tuple(value.shape))
        if there != tuple(value.shape) and (value.numel() > 1 or there not in ((), (1,))):
            raise ValueError(
                f"its config gives {shown(name)} shape {list(value.shape)}, its weights {shown(list(there))}"
            )


def _shapeless(path: Path) -> Shapes:
    """Return no shapes: those in a file of ``torch.save`` are unknown until it is read. Raises Unreadable for a file
    that takes more memory than it has bytes, or BadZipFile."""
    with open_regular(path) as file:
        refuse_larger(file, old=True)
    return {}


def _check_tokens(model_cfg: Mapping[str, Any], image_size: int | None) -> None:
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    size, patch = image_size or vision.get("image_size", 224), vision.get("patch_size")
    patch = 16 if patch is None else patch  # open_clip's ResNets have null
    length = text.get("context_length", 77)
    sizes = {"image_size": size, "patch_size": patch, "context_length": length}
    sides = size if isinstance(size, list) else [size]
    if (
        not sides
        or not all(type(value) is int and value > 0 for value in (*sides, patch, length))
        or max(sides) > MOST_PIXELS
        or max((max(sides) // patch) ** 2, length) > MOST_TOKENS
    ):
        raise ValueError(f"no model has sizes like {shown(sizes, 100)}")


@contextmanager
def within(numbers: int, tensors: int) -> Iterator[None]:
    """While open, limit the modules that this thread makes to so many numbers and tensors. Raises ValueError beyond."""
    mine = threading.get_ident()
    left = [numbers, tensors, 20 * tensors]

    def took(owner: nn.Module, name: str, value: Tensor | nn.Module | None) -> None:
        if value is None or threading.get_ident() != mine:
            return
        if isinstance(value, nn.Module):
            left[2] -= 1
        else:
            left[0] -= value.numel()
            left[1] -= 1
        if min(left) < 0:
            raise ValueError("its config says that it is larger than its weights are")

    with (
        hooks.register_module_parameter_registration_hook(took),
        hooks.register_module_buffer_registration_hook(took),
        hooks.register_module_module_registration_hook(took),
    ):
        yield
