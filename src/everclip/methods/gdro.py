"""Group DRO over classes: a contrastive loss per class, with more weight for the classes with the largest loss.

    l_i = tau log u1_i + tau log u2_i
    u1_i = mean_{j: y_j != y_i} exp( max(0, m + s(i,j) - s(i,i))^2 / tau ), u2_i with s(j,i)
    L_k = mean_{i: y_i = k} l_i                                                            (equation 5)
    F = max_p sum_k p_k L_k - lambda KL(p, 1/K) = lambda log mean_k exp( L_k / lambda )    (equation 6)

Negatives are the pairs of other classes, through a squared hinge with margin m: a negative that is m below the positive
has no loss. u is a moving average per sample and s_k, that of L_k, one per class; both carry over from task to task.
The weights p = softmax(s / lambda) run over all classes with images now. An image counts n p_k / n_k, which makes the
estimate unbiased under uniform sampling; an exemplar among many new images then counts fifty times as much as each of
these. `omega=batch` reads the paper as softmax and means over the batch: an image counts B q_k / B_k, with q the p of
the batch's classes, scaled to sum to 1. Equation 5 and the estimator are not public; docs/methods.md says what is
certain.

For data with captions, the weighted classes are the groups in the column `group`, and negatives are the pairs with
another caption.

    Parameters  none
    State       two moving averages (fp32) per exemplar, one per class
    Passes      1 of the image tower; 1 of the text tower for each class of the batch
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2605.03866
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Phase, Prompts, Task
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.shared.contrastive import Contrastive, ContrastiveConfig, valued
from everclip.methods.shared.groups import GroupConfig, GroupWeights

log = logging.getLogger("everclip")


class Gdro(Contrastive):
    """GDRO of the everclip paper, section 3.2."""

    class Config(GroupConfig, ContrastiveConfig):
        search: ClassVar = {
            "margin": (0.2, 0.3, 0.5),
            "tau": (0.02, 0.05),
            "strength": (0.03, 0.1, 0.3),
            "omega": ("unbiased", "batch"),
            "weight_clip": (None, 4.0),
            "sampling": ("uniform", "class_balanced"),
        }

        negatives: Literal["instance", "other_class", "multi_positive"] = Field(
            default="other_class",
            description="negatives: only pairs of other classes; every other pair; or pairs of other"
            " classes, with the mean similarity to all pairs of the class as the positive",
        )
        surrogate: Literal["identity", "squared_hinge"] = Field(
            default="squared_hinge",
            description="loss of a difference of similarities: itself, or max(0, margin + difference)^2",
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        balanced = config.sampling == "class_balanced"
        self.groups = GroupWeights(config, len(prompts.names), balanced)

    def tables(self) -> dict[str, SampleTable]:
        return super().tables() | {"group_losses": self.groups.losses, "adversary": self.groups.adversary}

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Count the images of each group, of the task and of the memory."""
        super().begin_task(clip, task, train)
        if task.index == 0 and len(self.prompts.names) == 1 and self.config.dro != "none":
            log.warning(
                "gdro has only one group, so its weights have no effect: add a column group to images with captions"
            )
        if not self.config.carry_over:
            self.groups.reset()
        self.groups.begin(train, torch.from_numpy(np.isin(train.ids, task.train.ids)), clip.device)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        pairs, weigh = self.compare(features, batch), self.groups
        if self.config.dro == "none":
            return {"gdro": valued(pairs.surrogate(), pairs.value.mean())}
        groups = weigh.of(batch.labels, batch.domains, batch.current)
        objective = weigh.update(pairs.value[pairs.active], groups[pairs.active])
        entropy = torch.special.entr(weigh.p).sum() / math.log(max(2, len(weigh.p)))
        self.last |= {"weight_entropy": entropy.item(), "weight_max": weigh.p.max().item()}
        weights = weigh.weights(groups, batch.labels).to(features["image"])
        return {"gdro": valued(pairs.surrogate(weights), objective.to(features["image"]))}

    def class_weights(self) -> dict[int, float]:
        return {} if self.config.dro == "none" else self.groups.by_class()
