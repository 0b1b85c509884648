"""Split an image tower in two: blocks shared by all tasks, and last blocks that each task may have its own copy of.

A block is a transformer block or a stage of a convolutional tower; all that follows the last block (norm, pooling,
projection) goes with it. The tower itself runs as always. The input of the first of its last blocks is captured on the
way, and copies of the last blocks (``Upper``) go on from there, so the shared part runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.models.clip import Clip, Images
from everclip.models.trunk import Parts, above


class Split:
    """The place where a tower is cut: before the last ``blocks`` of its blocks. Raises UserError where its blocks are
    unknown or too few.

    Attributes:
        cut: path of the first block above the cut.
    """

    def __init__(self, tower: nn.Module, blocks: int) -> None:
        parts = Parts.of(tower, "method=der_expand")
        if blocks >= len(parts.blocks):
            raise UserError(
                f"{blocks} blocks of the image tower's {len(parts.blocks)} leaves none to share:"
                f" use at most {len(parts.blocks) - 1}, or method=der_expand"
            )
        self.cut = parts.blocks[-blocks]
        self._below = parts.below(blocks)

    def above(self, name: str) -> bool:
        """Return whether a parameter of the tower is above the cut."""
        return not any(name == part or name.startswith(f"{part}.") for part in self._below)

    def upper(self, clip: Clip) -> Upper:
        """Return a frozen copy of the image tower's part above the cut."""
        return Upper(clip.copy_tower(), self._below)

    def encode(self, clip: Clip, images: Images, older: Iterable[nn.Module]) -> list[Float[Tensor, "n d"]]:
        """Return unit-length features from the copies ``older`` of the upper part, and then from the tower itself."""
        images, entered = clip.normalise(images), list[Tensor]()
        block = clip.model.visual.get_submodule(self.cut)
        with block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])):
            newest = clip.encode_image(images)
        return [*(clip.encode_image(images, _Resumed(part, entered[0])) for part in older), newest]


class Upper(nn.Module):
    """The part of ``tower`` (which it takes over) that remains without ``below``.

    Maps the input of its first block to raw features.
    """

    def __init__(self, tower: nn.Module, below: Iterable[str]) -> None:
        super().__init__()
        self.tower = above(tower, below)

    def forward(self, hidden: Tensor) -> Float[Tensor, "b d"]:
        return self.tower(hidden)


class _Resumed(nn.Module):
    """A tower that ignores its images: it goes on from the captured input of its upper part."""

    def __init__(self, upper: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.upper, self.hidden = upper, hidden

    def forward(self, images: Tensor) -> Tensor:
        return self.upper(self.hidden)
