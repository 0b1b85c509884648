"""MEMO: shared lower blocks of the image tower, separate last blocks for each task, one head on all features.

    h(x)    = shared blocks of x
    f(x)    = [ g_1(h(x)), ..., g_t(h(x)) ]               g_t starts as a copy of g_{t-1}; older ones are frozen
    loss    = CE( scale * W f + b, y ) + aux_weight * CE( scale * V g_t + c, y' )        the second from task 2 on

g is the last ``blocks`` blocks of the tower and all that follows them: for a ViT the last transformer block, the final
norm and the projection, for a convolutional tower the last stage and what follows. The shared blocks are trained in the
first task and frozen from then on (``shared=frozen``, PILOT's setting for ViTs), or trained throughout (PyCIL's for
ResNets): then older tasks' features drift, although their own blocks do not change. The heads, y', ``balance`` and the
handling of domains are those of der_expand.

    Parameters  last blocks for each task after the first; a head on the features of all; an auxiliary head
    State       those blocks and heads
    Passes      1 of the image tower, and 1 of each earlier task's own blocks; balance=retrain adds as many
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2205.13218
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Clip, Images, Task
from everclip.methods.shared.expand import Expand, ExpandConfig
from everclip.models.split import Split

OWN = 1 / 12
"""Fraction of a tower that each task owns, as for one of twelve blocks; used by the estimates."""


class Memo(Expand):
    """Last blocks for each task, on top of shared ones."""

    class Config(ExpandConfig):
        search: ClassVar = {
            "retrain_penalty": (1.0, 10.0),
            "shared": ("frozen", "trained"),
            "balance": ("retrain", "align", "none"),
            "aux_weight": (0.0, 0.3, 1.0),
        }

        blocks: int = Field(default=1, ge=1, description="last blocks (or stages) that each task owns")
        shared: Literal["frozen", "trained"] = Field(
            default="frozen", description="treatment of the shared blocks after the first task"
        )

    capabilities = replace(Expand.capabilities, reads="blocks")
    config: Config
    passes = Passes(
        lambda stage: (OWN, 1 - OWN + stage * OWN) if stage else (1.0, 0.0),
        "none",
        after=(0.0, 1.0),
        read=lambda stage: 1 + stage * OWN,
    )
    _split: Split

    def grow(self, clip: Clip, task: Task) -> None:
        """Grow as every expanding method does. Raises UserError for a tower that cannot be cut in two."""
        self._split = Split(clip.model.visual, self.config.blocks)
        super().grow(clip, task)

    def own_part(self, clip: Clip) -> nn.Module:
        return self._split.upper(clip)

    def own_parameters(self, clip: Clip) -> Iterator[nn.Parameter]:
        everything = not self.older or self.config.shared == "trained"
        for name, parameter in clip.image_parameters():
            if everything or self._split.above(name.removeprefix("visual.")):
                yield parameter

    def extract(self, clip: Clip, images: Images) -> list[Float[Tensor, "n d"]]:
        return self._split.encode(clip, images, self.older)
