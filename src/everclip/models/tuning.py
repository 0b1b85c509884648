"""Settle what of a model trains: everything, one tower, the top blocks, low-rank updates, or only the method's head.

    full      both towers (``train.lr_text=0`` freezes the text tower too)
    image     the image tower            text      the text tower
    top:K     the last K blocks of each tower, and what comes after them
    lora:R    W + 2 B A with A (R x in), B (out x R), B starting at zero (Hu et al. 2022, arXiv 2106.09685)
    head      what the method adds, such as a linear head

A block is a transformer block or a stage of a convolutional tower. LoRA is on all linear layers, attention
projections and 1 x 1 convolutions of both towers; it starts anew with each task and is folded into the weights at its
end, so that a checkpoint is an ordinary model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from everclip.errors import UserError
from everclip.models.clip import Clip
from everclip.models.low_rank import fold, low_rank

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


def begin(clip: Clip, tune: str) -> None:
    """Settle what of ``clip`` trains in a task. Takes LoRA's start from torch's random state.

    Raises:
        UserError: a tower whose blocks are not known, or more blocks than it has.
    """
    kind, _, number = tune.partition(":")
    names = [name for name, _ in clip.model.named_parameters()]
    if kind == "lora":
        for module, weight in list(_matrices(clip)):
            low_rank(module, weight, int(number))
        names = [name for name, _ in clip.model.named_parameters()]
        clip.hold({name for name in names if not name.endswith((".0.a", ".0.b"))})
    elif kind == "top":
        clip.hold(below(clip, int(number)))
    elif kind == "head":
        clip.hold(set(names))
    elif kind in ("image", "text"):
        clip.hold({n for n in names if n != "logit_scale" and n.startswith("visual.") != (kind == "image")})
    else:
        clip.hold(set())


def check(clip: Clip, tune: str) -> None:
    """Refuse, before a run, what ``begin`` would refuse at its first task. Raises UserError as ``begin`` does."""
    kind, _, number = tune.partition(":")
    if kind == "top":
        below(clip, int(number))


def below(clip: Clip, count: int) -> set[str]:
    """Names of the parameters below the last ``count`` blocks of each tower.

    Raises:
        UserError: a tower whose blocks are not known, or more blocks than it has.
    """
    return _below([name for name, _ in clip.model.named_parameters()], count)


def end(clip: Clip) -> None:
    """Fold low-rank updates into the weights; nothing to do for the other kinds."""
    fold(clip.model)


def _matrices(clip: Clip) -> Iterator[tuple[nn.Module, str]]:
    """Modules and names of the weights that get a low-rank update."""
    for module in clip.model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield module, "in_proj_weight"
        elif isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            yield module, "weight"


def _below(names: list[str], count: int) -> set[str]:
    """Parameters below the last ``count`` blocks of their tower."""
    held: set[str] = set()
    for image in (True, False):
        tower = [n for n in names if n.startswith("visual.") == image and not n.startswith("logit_")]
        if not tower:
            continue
        found = {name: _block(name) for name in tower}
        numbers = sorted({number for number in found.values() if number is not None})
        if not numbers:
            raise UserError(
                f"tune=top:{count}: the blocks of the {'image' if image else 'text'} tower are not known:"
                " write tune=lora:8, or tune=full"
            )
        if count > len(numbers):
            raise UserError(
                f"tune=top:{count} but a tower has {len(numbers)} blocks: write at most {len(numbers)}"
            )
        first = numbers[-count]
        for name, number in found.items():
            stem = number is None and (_RESNET_STEM.match(name) or any(p in _STEM for p in name.split(".")))
            if stem or (number is not None and number < first):
                held.add(name)
    return held


def _block(name: str) -> int | None:
    """Number of the outermost block that a parameter is in, None outside of the blocks."""
    parts = name.split(".")
    for here, after in pairwise(parts):
        if here in _BLOCKS and after.isdecimal():
            return int(after)
        if here.startswith("layer") and here[5:].isdecimal():  # the stages of a ResNet
            return int(here[5:])
    return None
