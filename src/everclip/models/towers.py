"""Describe an image tower of any class."""

from __future__ import annotations

from typing import Any

from torch import nn


def input_side(visual: Any) -> int:
    """Return the side in pixels of a tower's input; open_clip notes it as one number or as two."""
    size: int | tuple[int, int] = visual.image_size
    return size if isinstance(size, int) else size[0]


def is_convolutional(visual: nn.Module) -> bool:
    """Return whether most of the tower is 2-d convolutions; a ViT has one, or a few in its stem."""
    return sum(isinstance(module, nn.Conv2d) for module in visual.modules()) > 8


def is_visual(name: str) -> bool:
    """Return whether a module or parameter of an open_clip model, by its name, is the image tower's."""
    return name.partition(".")[0] == "visual"
