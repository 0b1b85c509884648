"""An image tower in two: blocks that tasks share, and the last blocks, which a task can have of its own.

A block is a transformer block or a stage of a convolutional tower; all that follows the last block (norm, pooling,
projection) goes with it. The tower itself runs as always. What enters the first of its last blocks is taken on the
way, and copies of the last blocks (``Upper``) go on from there: so the shared part runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.models.clip import Clip

_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_CONVOLUTIONS = tuple(part + number for number in "123" for part in ("conv", "bn", "act"))


class Split:
    """Where a tower is cut: before the last ``blocks`` of its blocks.

    Attributes:
        cut: path of the first block above the cut.

    Raises:
        UserError: a tower whose blocks are not known, or too few blocks.
    """

    def __init__(self, tower: nn.Module, blocks: int) -> None:
        stem, chain = _parts(tower)
        if blocks >= len(chain):
            raise UserError(
                f"{blocks} blocks of the image tower's {len(chain)} leave none to share:"
                f" write at most {len(chain) - 1}, or method=der_expand"
            )
        self.cut = chain[-blocks]
        self._below = (*stem, *chain[:-blocks])

    def above(self, name: str) -> bool:
        """Whether a parameter of the tower stands above the cut."""
        return not any(name == part or name.startswith(f"{part}.") for part in self._below)

    def upper(self, clip: Clip) -> Upper:
        """A frozen copy of what stands above the cut of the image tower."""
        return Upper(clip.copy_tower(), self._below)

    def encode(
        self, clip: Clip, images: Float[Tensor, "b 3 h w"], older: Iterable[nn.Module]
    ) -> list[Float[Tensor, "b d"]]:
        """Unit-length features of the copies ``older`` of the upper part, and then of the tower itself."""
        entered: list[Tensor] = []
        block = clip.model.visual.get_submodule(self.cut)
        hook = block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            newest = clip.encode_image(images)
        finally:
            hook.remove()
        return [*(clip.encode_image(images, _Resumed(part, entered[0])) for part in older), newest]


class Upper(nn.Module):
    """The part of ``tower`` (which it takes over) that is left without ``below``.

    Maps what enters the first of its blocks to raw features.
    """

    def __init__(self, tower: nn.Module, below: Iterable[str]) -> None:
        super().__init__()
        for path in below:
            parent, _, name = path.rpartition(".")
            owner = tower.get_submodule(parent)
            setattr(owner, name, _Pass() if name in dict(owner.named_children()) else None)
        self.tower: Any = tower

    def forward(self, hidden: Tensor) -> Float[Tensor, "b d"]:
        tower = self.tower
        if isinstance(tower, VisionTransformer):
            pooled, _ = tower._pool(tower.transformer(hidden))
            return pooled if tower.proj is None else pooled @ tower.proj
        if isinstance(tower, TimmModel) and isinstance(trunk := tower.trunk, TimmTransformer):
            return tower.head(trunk.forward_head(trunk.norm(trunk.blocks(hidden))))
        return tower(hidden)  # a chain of modules, whose lower ones now hand on what they get


class _Pass(nn.Module):
    """Hands on what it gets, whatever else it is told."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


class _Resumed(nn.Module):
    """A tower that does not look at its images: it goes on from what entered its upper part."""

    def __init__(self, upper: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.upper, self.hidden = upper, hidden

    def forward(self, images: Tensor) -> Tensor:
        return self.upper(self.hidden)


def _parts(tower: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of what stands before the blocks of a tower, and of the blocks."""
    if isinstance(tower, TimmModel):
        stem, chain = _trunk_parts(tower.trunk)
        return tuple(f"trunk.{part}" for part in stem), tuple(f"trunk.{part}" for part in chain)
    if isinstance(tower, VisionTransformer):
        stem = ("conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre")
        return stem, _numbered("transformer.resblocks", tower.transformer.resblocks)
    if isinstance(tower, ModifiedResNet):
        return (*_CONVOLUTIONS, "avgpool"), _LAYERS
    raise _unknown(tower)


def _trunk_parts(trunk: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(trunk, EfficientNet):
        return ("conv_stem", "bn1"), _numbered("blocks", trunk.blocks)
    if isinstance(trunk, ConvNeXt):
        return ("stem",), _numbered("stages", trunk.stages)
    if isinstance(trunk, ResNet):
        return ("conv1", "bn1", "act1", "maxpool"), _LAYERS
    if isinstance(trunk, TimmTransformer):
        stem = ("patch_embed", "pos_embed", "cls_token", "reg_token", "pos_drop", "patch_drop", "norm_pre")
        return stem, _numbered("blocks", trunk.blocks)
    raise _unknown(trunk)


def _numbered(path: str, blocks: Any) -> tuple[str, ...]:
    return tuple(f"{path}.{number}" for number in range(len(blocks)))


def _unknown(tower: object) -> UserError:
    return UserError(
        f"an image tower of the kind {type(tower).__name__} cannot be cut into shared and own blocks:"
        " write method=der_expand, or use a ViT, ResNet, ConvNeXt or EfficientNet"
    )
