"""Low-rank updates of the weights: W + 2 B A with A (R x in), B (out x R), B starting at zero.

They are on all linear layers, attention projections and 1 x 1 convolutions of both towers. They start anew in each
task and are folded into the weights at its end, so that a checkpoint is an ordinary model. The weights themselves and
the logit scale do not train.

Paper: Hu et al. 2022, https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from torch import nn

from everclip.models.clip import Clip
from everclip.models.low_rank import fold, low_rank
from everclip.models.tunings._base import Tuning


class Lora(Tuning):
    """Updates of both towers."""

    class Config(Tuning.Config):
        """The size of an update."""

        rank: int = Field(ge=1, le=9999, description="rank R of each update")

    config: Config

    passes: ClassVar[float] = 2.0
    shards: ClassVar[bool] = False

    def held(self, clip: Clip) -> set[str]:
        """Return all but the updates."""
        return {name for name, _ in clip.model.named_parameters() if not name.endswith((".0.a", ".0.b"))}

    def begin(self, clip: Clip) -> None:
        """Add the updates; A is drawn from torch's random state."""
        for module, weight in list(_matrices(clip)):
            low_rank(module, weight, self.config.rank)
        super().begin(clip)

    def end(self, clip: Clip) -> None:
        """Fold the updates into the weights."""
        fold(clip.model)


def _matrices(clip: Clip) -> Iterator[tuple[nn.Module, str]]:
    """Yield modules and names of the weights that get an update."""
    for module in clip.model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield module, "in_proj_weight"
        elif isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            yield module, "weight"
