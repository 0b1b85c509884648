"""Change the image size of a loaded image tower."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from everclip.errors import UserError
from everclip.models.foreign import ModifiedResNet, TimmModel
from everclip.models.towers import is_convolutional


def allow(spec: str, visual: nn.Module, image_size: int) -> None:
    """Make a loaded convolutional tower take another image size.

    Raises:
        UserError: naming ``spec``, where the tower takes only its own size, or only multiples of 32.
    """
    if isinstance(visual, ModifiedResNet):
        if image_size % 32:
            near = max(32, round(image_size / 32) * 32)
            raise UserError(f'model "{spec}" takes image sizes in multiples of 32: use image_size={near}')
        _resize_pool(visual.attnpool, image_size // 32)
        return
    positions = any(name.rsplit(".", 1)[-1] == "pos_embed" for name, _ in visual.named_parameters())
    if not isinstance(visual, TimmModel) or not is_convolutional(visual) or positions:
        raise UserError(f'image_size: model "{spec}" only takes its own size, not {image_size}; leave it out')


def _resize_pool(pool: Any, side: int) -> None:
    """Interpolate the attention pool's position embeddings to ``side`` x ``side`` cells, as open_clip does for ViTs."""
    old = pool.positional_embedding.detach()
    first, grid = old[:1], old[1:]
    cells = math.isqrt(len(grid))
    image = grid.T.reshape(1, -1, cells, cells)
    image = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
    pool.positional_embedding = nn.Parameter(torch.cat([first, image[0].flatten(1).T]))
