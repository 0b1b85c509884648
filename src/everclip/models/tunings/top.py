"""The last blocks of each tower, and everything after them.

A block is a transformer block or a stage of a convolutional tower. The logit scale trains if the method trains it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field

from everclip.errors import UserError
from everclip.models.tunings._base import Tuning

if TYPE_CHECKING:
    from everclip.models.clip import Clip

_BLOCKS = ("resblocks", "blocks", "stages", "layers", "layer")
_STEM = (
    "class_embedding",
    "positional_embedding",
    "conv1",
    "ln_pre",
    "token_embedding",
    "embeddings",
    "patch_embed",
    "pos_embed",
    "cls_token",
    "reg_token",
    "conv_stem",
    "stem",
    "bn1",
    "norm_pre",
)

_RESNET_STEM = re.compile(r"visual\.(conv|bn)[123]\.")


class Top(Tuning):
    """The upper part of both towers."""

    class Config(Tuning.Config):
        """The number of blocks."""

        blocks: int = Field(ge=1, le=9999, description="number K of last blocks per tower that train")

    config: Config

    def held(self, clip: Clip) -> set[str]:
        """Return what lies below the blocks. Raises UserError where they are not known, or fewer than asked for."""
        return below((name for name, _ in clip.model.named_parameters()), self.config.blocks)

    @property
    def blocks(self) -> tuple[int | None, int | None]:
        """The same number of blocks for both towers."""
        return self.config.blocks, self.config.blocks


def below(names: Iterable[str], count: int) -> set[str]:
    """Return the parameters among ``names`` that lie below the last ``count`` blocks of their tower. Raises UserError
    for unknown or too few blocks."""
    names, held = list(names), set[str]()
    for image in (True, False):
        tower = [n for n in names if n.startswith("visual.") == image and not n.startswith("logit_")]
        if not tower:
            continue
        found = {name: _block(name) for name in tower}
        numbers = sorted({number for number in found.values() if number is not None})
        if not numbers:
            raise UserError(
                f"the blocks of the {'image' if image else 'text'} tower are not known: use tune=lora:8"
            )
        if count > len(numbers):
            raise UserError(f"tune=top:{count} but a tower has {len(numbers)} blocks: use fewer")
        first = numbers[-count]
        for name, number in found.items():
            stem = number is None and (_RESNET_STEM.match(name) or any(p in _STEM for p in name.split(".")))
            if stem or (number is not None and number < first):
                held.add(name)
    return held


def _block(name: str) -> int | None:
    """Return the number of the outermost block that a parameter is in; None outside the blocks."""
    parts = name.split(".")
    for here, after in pairwise(parts):
        if here in _BLOCKS and after.isdecimal():
            return int(after)
        if here.startswith("layer") and here[5:].isdecimal():  # the stages of a ResNet
            return int(here[5:])
    return None
