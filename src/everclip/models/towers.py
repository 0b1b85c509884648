"""Describe an image tower of any class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from everclip.models.foreign import (
    Block,
    CustomResidualAttentionBlock,
    ModifiedResNet,
    ResidualAttentionBlock,
    TimmModel,
    VisionTransformer,
)


def input_side(visual: Any) -> int:
    """Return the side in pixels of a tower's input; open_clip notes it as one number or as two."""
    size: int | tuple[int, int] = visual.image_size
    return size if isinstance(size, int) else size[0]


def is_convolutional(visual: nn.Module) -> bool:
    """Return whether most of the tower is 2-d convolutions; a ViT has one, or a few in its stem."""
    return sum(isinstance(module, nn.Conv2d) for module in visual.modules()) > 8


def is_visual(name: str) -> bool:
    """Return whether a module or parameter of an open_clip model belongs to the image tower, by its name."""
    return name.partition(".")[0] == "visual"


def of_text(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of an open_clip model that are not of the image tower."""
    for name, part in model.named_children():
        if not is_visual(name):
            yield from part.modules()


def first_layers(model: nn.Module) -> list[str]:
    """Return names of the first linear layer of the MLP of each transformer block."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, ResidualAttentionBlock | CustomResidualAttentionBlock):
            names.append(f"{name}.mlp.c_fc")
        elif isinstance(module, Block):
            names.append(f"{name}.mlp.fc1")
    return names


def projection(visual: nn.Module) -> list[str]:
    """Return names, in an open_clip model, of the parameters that project into the joint space; none if not known."""
    if isinstance(visual, VisionTransformer):
        return [] if visual.proj is None else ["visual.proj"]
    if isinstance(visual, ModifiedResNet):
        return ["visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias"]
    if isinstance(visual, TimmModel):
        return [f"visual.head.{name}" for name, _ in visual.head.named_parameters()]
    return []
