"""Cut off the trunk, the part of an image tower that no task trains, so that its output can be kept.

A tower is cut before the last of its blocks. What lies below becomes the trunk, from pictures to hidden activations;
the remaining tower continues from there and keeps its weights' names. A block is a transformer block or a stage of a
convolutional tower; all that follows the last block (norm, pooling, projection) goes with it. With no block above the
cut the trunk is the whole tower, and the remaining part only returns its features.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.models.foreign import (
    ConvNeXt,
    EfficientNet,
    ModifiedResNet,
    ResNet,
    TimmModel,
    TimmTransformer,
    VisionTransformer,
)
from everclip.models.pooled import Features

Beside = Callable[[nn.Module, Float[Tensor, "b 3 h w"]], tuple[Float[Tensor, "b d"], Float[Tensor, "b m"]]]
"""Maps a tower and normalised pictures to the tower's features and what else is read from it (``pooled.both``)."""
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_CONVOLUTIONS = tuple(part + number for number in "123" for part in ("conv", "bn", "act"))


@dataclass(frozen=True)
class Parts:
    """Paths of a tower's modules before the blocks, and of the blocks."""

    stem: tuple[str, ...]
    blocks: tuple[str, ...]

    @classmethod
    def of(cls, tower: nn.Module, otherwise: str) -> Parts:
        """Return the parts of a tower. Raises UserError where its blocks are not known, advising ``otherwise``."""
        if isinstance(tower, nn.Identity):  # the tower of models/vectors.py
            raise UserError(f"features have no blocks: use {otherwise}")
        kind: Any = tower.trunk if isinstance(tower, TimmModel) else tower
        found = _parts(kind)
        if found is None:
            raise UserError(
                f"an image tower of the kind {type(kind).__name__} cannot be cut between its blocks:"
                f" use {otherwise}, or use a ViT, ResNet, ConvNeXt or EfficientNet"
            )
        if kind is tower:
            return found
        return cls(*(tuple(f"trunk.{part}" for part in parts) for parts in (found.stem, found.blocks)))

    def below(self, blocks: int) -> tuple[str, ...]:
        """Return the paths below the last ``blocks`` blocks, of which there are at least one and not all."""
        assert 0 < blocks < len(self.blocks)
        return (*self.stem, *self.blocks[:-blocks])


class Trunk(nn.Module):
    """The lower part of a tower, frozen. Copies of a model share it.

    Attributes:
        vectors: whether it is the whole tower, so that it returns features and not a block's activations.
        bf16: whether it computes in bf16 where training does; else it always computes in fp32.
    """

    bf16 = False

    def __init__(self, lower: nn.Module, vectors: bool, beside: Beside | None) -> None:
        super().__init__()
        self.lower = lower.eval().requires_grad_(False)
        self.vectors = vectors
        self._beside = beside

    def __deepcopy__(self, memo: dict[int, Any]) -> Trunk:
        return self

    @torch.no_grad()
    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ..."]:
        """Return, in fp32, the input of the first block above the cut, or the rows that the upper part returns."""
        device = pictures.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16 and torch.is_autocast_enabled(device)):
            if self._beside is not None:
                return torch.cat(self._beside(self.lower, pictures), 1).float()
            return self.lower(pictures).float()

    def joined(self, keys: Iterable[str], upper: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return the whole model's tensors in the order of ``keys``: ``upper``'s, and its own under ``prefix``."""
        own = {prefix + name: tensor for name, tensor in self.lower.state_dict().items()}
        return {key: upper[key] if key in upper else own[key] for key in keys}

    def digest(self) -> str:
        """Return a hash of what it computes: its layers, as they print, and its weights."""
        found = hashlib.blake2b(repr(self.lower).encode(), digest_size=16)
        for name, tensor in self.lower.state_dict().items():
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()


def cut(tower: nn.Module, blocks: int, beside: Beside | None = None) -> tuple[nn.Module, Trunk]:
    """Cut a tower below its last ``blocks`` blocks; return the upper part, and the trunk. Raises UserError where its
    blocks are not known, or none is left below.

    Args:
        tower: is taken apart.
        blocks: 0 leaves nothing above the cut.
        beside: with 0 blocks, computes what follows the features in each row.
    """
    if blocks == 0:
        upper = Features(None if beside is None else _output_width(tower))
        return upper, Trunk(tower, vectors=True, beside=beside)
    parts = Parts.of(tower, "cache.trunk=off")
    if blocks >= len(parts.blocks):
        raise UserError(
            f"tune=top:{blocks} leaves no block of the image tower's {len(parts.blocks)} frozen:"
            f" use at most {len(parts.blocks) - 1}, or cache.trunk=off"
        )
    below = parts.below(blocks)
    # a copy of the modules that shares parameters and buffers with them
    shared = {id(tensor): tensor for tensor in chain(tower.parameters(), tower.buffers())}
    lower = copy.deepcopy(tower, shared)
    return above(tower, below), Trunk(_only(lower, below), vectors=False, beside=None)


def above(tower: nn.Module, below: Iterable[str]) -> nn.Module:
    """Return the tower itself without ``below``: it now takes the input of its first remaining block."""
    for path in below:
        parent, _, name = path.rpartition(".")
        owner = tower.get_submodule(parent)
        setattr(owner, name, _Pass() if name in dict(owner.named_children()) else None)
    if isinstance(tower, VisionTransformer):
        _override(tower, "_embeds")
    elif isinstance(tower, TimmModel) and isinstance(tower.trunk, TimmTransformer):
        _override(tower.trunk, "_pos_embed")
    return tower


def _only(tower: nn.Module, below: Iterable[str]) -> nn.Module:
    """Return the tower itself with nothing but ``below``: it now returns the input of the first block above."""
    _strip(tower, "", tuple(below))
    if isinstance(tower, VisionTransformer):
        _override(tower, "_pool", _twice)
        tower.output_tokens = False
    elif isinstance(tower, TimmModel):
        _override(tower.trunk, "forward_head")
    return tower


def _strip(module: nn.Module, prefix: str, kept: tuple[str, ...]) -> None:
    """Remove everything from a module except the parts whose paths are ``kept``."""
    for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
        if prefix + name not in kept:
            setattr(module, name, None)
    for name, child in list(module.named_children()):
        path = prefix + name
        if path not in kept:
            if any(part.startswith(path + ".") for part in kept):
                _strip(child, path + ".", kept)
            else:
                setattr(module, name, _Pass())


def _override(module: nn.Module, method: str, function: Any = None) -> None:
    """Make this one module's method return what it gets. As an attribute this goes into copies of the module."""
    setattr(module, method, function or _same)


class _Pass(nn.Module):
    """Return the input, whatever other arguments come with it."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


def _same(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return hidden


def _twice(hidden: Tensor) -> tuple[Tensor, Tensor]:
    return hidden, hidden


@torch.no_grad()
def _output_width(tower: Any) -> int:
    """Return the number of features of one picture."""
    size = tower.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    like = next(tower.parameters())
    return tower(torch.zeros(1, 3, height, width, dtype=like.dtype, device=like.device)).shape[1]


def _parts(kind: Any) -> Parts | None:
    if isinstance(kind, VisionTransformer):
        stem = ("conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre")
        return Parts(stem, _numbered("transformer.resblocks", kind.transformer.resblocks))
    if isinstance(kind, ModifiedResNet):
        return Parts((*_CONVOLUTIONS, "avgpool"), _LAYERS)
    if isinstance(kind, EfficientNet):
        return Parts(("conv_stem", "bn1"), _numbered("blocks", kind.blocks))
    if isinstance(kind, ConvNeXt):
        return Parts(("stem",), _numbered("stages", kind.stages))
    if isinstance(kind, ResNet):
        return Parts(("conv1", "bn1", "act1", "maxpool"), _LAYERS)
    if isinstance(kind, TimmTransformer):
        stem = ("patch_embed", "pos_embed", "cls_token", "reg_token", "pos_drop", "patch_drop", "norm_pre")
        return Parts(stem, _numbered("blocks", kind.blocks))
    return None


def _numbered(path: str, blocks: Any) -> tuple[str, ...]:
    return tuple(f"{path}.{number}" for number in range(len(blocks)))
