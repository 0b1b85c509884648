"""Global contrastive loss: every image against all captions of the task and the memory, and the reverse.

    F = mean_i [ tau log u1_i + tau log u2_i ]
    u1_i = mean_{j != i} exp( (s(i,j) - s(i,i)) / tau ),  u2_i = mean_{j != i} exp( (s(j,i) - s(i,i)) / tau )

The means run over the whole training set; a moving average per sample, u <- (1 - gamma) u + gamma (batch mean),
estimates them from small batches and carries over from task to task with the exemplars (equations 1-4). A sample's
first visit takes the batch mean itself.

    Parameters  none
    State       two moving averages (fp32) per exemplar
    Passes      1 of the image tower; 1 of the text tower for each class of the batch
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2605.03866
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from everclip.methods.base.method import Batch, Phase
from everclip.methods.shared.contrastive import Contrastive, ContrastiveConfig, valued


class Gcl(Contrastive):
    """GCL of the everclip paper, section 3.1."""

    class Config(ContrastiveConfig):
        search: ClassVar = {"tau": (0.02, 0.05, 0.1), "gamma": (0.5, 0.8)}

    config: Config

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        pairs = self.compare(features, batch)
        return {"gcl": valued(pairs.surrogate(), pairs.value.mean())}
