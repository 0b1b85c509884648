"""Dynamically Expandable Representation: one image tower per task, older ones frozen, one head on all features.

    f(x)    = [ f_1(x), ..., f_t(x) ]                     f_t, the model's tower, starts as a copy of f_{t-1}
    loss    = CE( scale * W f + b, y ) + aux_weight * CE( scale * V f_t + c, y' )        the second from task 2 on

W has a row for each class seen: old rows keep their columns and get new ones for f_t. The auxiliary head reads the
newest features alone; y' is 0 for any old class and 1, 2, ... for the new ones. After a task the head is retrained,
with classes weighted equally (``balance=retrain``, the paper's second stage), or new rows are scaled to the mean length
of the old ones (``align``, PyCIL). Exemplars are chosen by herding.

Ours: each f_t is unit length and multiplied by the model's logit scale. The second stage is learned on the features of
each image until its loss stops falling: the authors' 30 epochs are hundreds of steps, but with few images a few epochs
end near the start at 0. With ``retrain_penalty=none`` it takes steps on class-balanced batches with scores divided by
5, as the authors' code does. No head is retrained while a class seen has no image. The paper's channel masks and
pruning are left out, as in the authors' public run. Where tasks bring domains instead of classes, each has a tower; no
class is new then, so y' is the class itself, and the head stays as it was trained.

The parameters grow by a whole tower with each task: see memo for less.

    Parameters  an image tower per task after the first; a head on the features of all; an auxiliary head
    State       those towers and heads
    Passes      1 of each task's image tower, the newest with gradient; balance=retrain adds 1 of each
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2103.16788
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Clip, Images
from everclip.methods.shared.expand import Expand, ExpandConfig


class DerExpand(Expand):
    """One whole tower per task."""

    class Config(ExpandConfig):
        search: ClassVar = {
            "retrain_penalty": (1.0, 10.0),
            "balance": ("retrain", "align", "none"),
            "aux_weight": (0.0, 0.3, 1.0),
        }

    config: Config
    passes = Passes(
        lambda stage: (1.0, float(stage)),
        "none",
        after=(0.0, 1.0),
        read=lambda stage: stage + 1.0,
        frozen=float,
        saved=float,
    )

    def own_part(self, clip: Clip) -> nn.Module:
        return clip.copy_tower()

    def own_parameters(self, clip: Clip) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in clip.image_parameters())

    def extract(self, clip: Clip, images: Images) -> list[Float[Tensor, "n d"]]:
        images = clip.normalise(images)
        with torch.no_grad():
            older = [clip.encode_image(images, tower) for tower in self.older]
        return [*older, clip.encode_image(images)]
