"""Group DRO over classes: a contrastive loss per class, and more weight for the classes that lose most.

    l_i = tau log u1_i + tau log u2_i
    u1_i = mean_{j: y_j != y_i} exp( max(0, m + s(i,j) - s(i,i))^2 / tau ), u2_i with s(j,i)
    L_k = mean_{i: y_i = k} l_i                                                            (equation 5)
    F = max_p sum_k p_k L_k - lambda KL(p, 1/K) = lambda log mean_k exp( L_k / lambda )    (equation 6)

Negatives are the pairs of other classes, through a squared hinge with margin m: a negative that is m below the
positive costs nothing. u is a moving average per sample and s_k, that of L_k, one per class; both carry over from task
to task. The weights p = softmax(s / lambda) run over all classes with images now, and an image counts n p_k / n_k,
which makes the estimate unbiased under uniform sampling. Equation 5 and the estimator are not public;
docs/methods.md says what is certain.

Paper: https://arxiv.org/abs/2605.03866
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.losses import contrastive, dro
from everclip.methods._base import Batch, Clip, Phase, Prompts, Task
from everclip.methods._contrastive import Contrastive, ContrastiveConfig, valued
from everclip.sample_table import SampleTable


class Gdro(Contrastive):
    """GDRO of the everclip paper, section 3.2."""

    class Config(ContrastiveConfig):
        """Options of GDRO."""

        negatives: Literal["instance", "other_class", "multi_positive"] = Field(
            default="other_class",
            description="only pairs of other classes; every other pair; or pairs of other classes, with the mean"
            " similarity to all pairs of the class as the positive",
        )
        surrogate: Literal["identity", "squared_hinge"] = Field(
            default="squared_hinge",
            description="of a difference of similarities: itself, or max(0, margin + difference)^2",
        )
        strength: float = Field(
            default=0.1,
            gt=0,
            description="lambda: large weighs classes equally, small almost only the worst one",
        )
        gamma_class: float = Field(
            default=0.8, gt=0, le=1, description="share of the fresh value in a class's moving average"
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.class_losses = SampleTable(1)
        self._classes = np.zeros(0, dtype=np.int64)
        self._counts = torch.zeros(len(prompts.names), dtype=torch.int64)
        self._weights = torch.zeros(len(prompts.names))

    def tables(self) -> dict[str, SampleTable]:
        return super().tables() | {"class_losses": self.class_losses}

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Count the images of each class, of the task and of the memory."""
        self._counts = torch.from_numpy(train.counts(len(self.prompts.names))).to(clip.device)
        self._classes = np.unique(train.labels)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        config = self.config
        pairs = self.compare(features, batch, config)
        objective = self._update_classes(pairs.value[pairs.active], batch.labels[pairs.active])
        omega = dro.uniform_sampling_weights(
            self._weights.to(features["image"])[batch.labels],
            self._counts[batch.labels],
            int(self._counts.sum()),
        )
        gradient = contrastive.surrogate(pairs.losses, pairs.log_u, pairs.among, config.tau, omega)
        return {"gdro": valued(gradient, objective.to(gradient))}

    def _update_classes(self, values: Tensor, labels: Tensor) -> Tensor:
        """Mix the batch's class means into s_k, and take p over all classes that have images now; returns F."""
        if len(values):
            present, fresh = dro.group_means(values, labels)
            old, seen = self.class_losses.get(present)
            rate = torch.where(seen, self.config.gamma_class, 1.0)
            self.class_losses.set(present, (old[:, 0] + rate * (fresh.cpu() - old[:, 0]))[:, None])
        losses, active = self.class_losses.get(self._classes)
        self._weights = torch.zeros(len(self.prompts.names))
        if not active.any():
            return torch.zeros(())
        p = dro.kl_weights(losses[active, 0], self.config.strength)
        self._weights[torch.from_numpy(self._classes)[active]] = p
        entropy = torch.special.entr(p).sum() / np.log(max(2, len(p)))
        self.last |= {"weight_entropy": entropy.item(), "weight_max": p.max().item()}
        return dro.kl_objective(losses[active, 0], self.config.strength)

    def class_weights(self) -> dict[int, float]:
        return {int(label): float(self._weights[label]) for label in self._classes}
