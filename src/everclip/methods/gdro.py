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

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.losses import dro
from everclip.methods._base import Batch, Clip, Cost, Phase, Prompts, Task
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
        dro: Literal["kl", "sagawa", "none"] = Field(
            default="kl",
            description="weights in closed form; Sagawa et al.'s ascent on the batch's losses; or every image alike",
        )
        strength: float = Field(
            default=0.1,
            gt=0,
            description="lambda of kl: large weighs classes equally, small almost only the worst",
        )
        step_size: float = Field(default=0.01, gt=0, description="eta of sagawa")
        groups: Literal["class", "class_origin", "class_domain"] = Field(
            default="class",
            description="what is weighted: classes, classes by new or memory, or classes by domain",
        )
        gamma_class: float = Field(
            default=0.8, gt=0, le=1, description="share of the fresh value in a group's moving average"
        )
        weight_clip: float | None = Field(default=None, gt=0, description="most that one image may count")

    config: Config
    cost = Cost(state="two moving averages (fp32) an exemplar, one a class")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.group_losses = SampleTable(1)
        self.adversary = SampleTable(1)
        self._groups = self._counts = torch.zeros(0, dtype=torch.int64)
        self._class_counts = torch.zeros(len(prompts.names), dtype=torch.int64)
        self._p = torch.zeros(0)

    def tables(self) -> dict[str, SampleTable]:
        return super().tables() | {"group_losses": self.group_losses, "adversary": self.adversary}

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Count the images of each group, of the task and of the memory."""
        super().begin_task(clip, task, train)
        if not self.config.carry_over:
            self.group_losses, self.adversary = SampleTable(1), SampleTable(1)
        current = torch.from_numpy(np.isin(train.ids, task.train.ids))
        groups = self._group(torch.from_numpy(train.labels), torch.from_numpy(train.domains), current)
        self._groups, self._counts = (part.to(clip.device) for part in groups.unique(return_counts=True))
        self._class_counts = torch.from_numpy(train.counts(len(self.prompts.names))).to(clip.device)
        self._p = torch.zeros(len(self._groups), device=clip.device)

    def _group(self, labels: Tensor, domains: Tensor, current: Tensor) -> Int64[Tensor, " n"]:
        """Group ids."""
        if self.config.groups == "class_origin":
            return 2 * labels + current
        if self.config.groups == "class_domain":
            return labels + len(self.prompts.names) * domains
        return labels

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        pairs = self.compare(features, batch)
        groups = self._group(batch.labels, batch.domains, batch.current)
        if self.config.dro == "none":
            return {"gdro": valued(pairs.surrogate(), pairs.value.mean())}
        update = self._ascend if self.config.dro == "sagawa" else self._average
        objective = update(pairs.value[pairs.active], groups[pairs.active])
        entropy = torch.special.entr(self._p).sum() / math.log(max(2, len(self._p)))
        self.last |= {"weight_entropy": entropy.item(), "weight_max": self._p.max().item()}
        weights = self._weights(groups, batch.labels).to(features["image"])
        return {"gdro": valued(pairs.surrogate(weights), objective.to(features["image"]))}

    def _average(self, values: Float[Tensor, " a"], groups: Int64[Tensor, " a"]) -> Float[Tensor, ""]:
        """Mix the batch's group means into s_k, and take p in closed form; returns F (equation 6)."""
        if len(values):
            present, fresh = dro.group_means(values, groups)
            old, seen = self.group_losses.get(present)
            rate = torch.where(seen, self.config.gamma_class, 1.0)
            self.group_losses.set(present, (old[:, 0] + rate * (fresh.cpu() - old[:, 0]))[:, None])
        losses, active = self.group_losses.get(self._groups)
        self._p.zero_()
        if not active.any():
            return torch.zeros(())
        known = losses[active, 0]
        self._p[active.to(self._p.device)] = dro.kl_weights(known, self.config.strength).to(self._p)
        return dro.kl_objective(known, self.config.strength)

    def _ascend(self, values: Float[Tensor, " a"], groups: Int64[Tensor, " a"]) -> Float[Tensor, ""]:
        """A step of the adversary on the batch's group means; returns sum_k q_k L_k."""
        q, seen = self.adversary.get(self._groups)
        q = torch.where(seen, q[:, 0], 1 / len(self._groups)).to(self._p)
        losses = torch.zeros_like(self._p)
        if len(values):
            present, fresh = dro.group_means(values, groups)
            losses[torch.searchsorted(self._groups, present)] = fresh.to(losses)
        self._p = dro.sagawa_step(q, losses, self.config.step_size)
        self.adversary.set(self._groups, self._p[:, None])
        return (self._p * losses).sum()

    def _weights(self, groups: Int64[Tensor, " b"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """omega: how much each image of the batch counts, by how it was drawn."""
        config, where = self.config, torch.searchsorted(self._groups, groups)
        p, counts, most = self._p[where], self._counts[where], config.weight_clip or math.inf
        if config.dro == "sagawa":  # its losses are the batch's own
            return dro.balanced_sampling_weights(p, groups, len(groups.unique()), most)
        if config.sampling == "class_balanced":
            within = self._class_counts[labels] / counts
            classes = int((self._class_counts > 0).sum())
            return dro.balanced_sampling_weights(p * within, labels, classes, most)
        return dro.uniform_sampling_weights(p, counts, int(self._counts.sum()), most)

    def class_weights(self) -> dict[int, float]:
        if self.config.dro == "none":
            return {}
        size, weights = len(self.prompts.names), {}
        for group, p in zip(self._groups.tolist(), self._p.tolist(), strict=True):
            label = group // 2 if self.config.groups == "class_origin" else group % size
            weights[label] = weights.get(label, 0.0) + p
        return weights
