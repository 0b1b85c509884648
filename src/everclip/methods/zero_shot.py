"""The pretrained model as it is: Continual-CLIP (Thengane et al. 2022), the row that every method has to beat.

Nothing is trained and nothing is kept; the label set grows with the tasks, and an image goes to the class whose
embedding, the renormalised mean over the templates, is nearest.

Paper: https://arxiv.org/abs/2210.03114
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Cost, Method, MethodConfig, Phase, Task


class ZeroShot(Method):
    """Trains nothing."""

    class Config(MethodConfig):
        """No options."""

    uses_memory = False
    trains = False
    cost = Cost(passes="none", memory="none")
    passes = Passes(lambda stage: (0.0, 0.0), "seen")

    def phases(self, task: Task) -> list[Phase]:
        return []

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        raise AssertionError("zero_shot has no training phase")

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        raise AssertionError("zero_shot has no training phase")
