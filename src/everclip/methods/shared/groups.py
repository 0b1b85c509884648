"""Weigh the losses of groups for GDRO: their counts, moving averages and weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from everclip.config import MethodConfig
from everclip.data.images import ImageSet
from everclip.losses import dro
from everclip.methods.base.sample_table import SampleTable


class GroupConfig(MethodConfig):
    """Options for making and weighing groups."""

    dro: Literal["kl", "sagawa", "none"] = Field(
        default="kl",
        description="class weights in closed form (kl); by Sagawa et al.'s ascent on the batch's losses"
        " (sagawa); or equal weights per image (none)",
    )
    strength: float = Field(
        default=0.1,
        gt=0,
        description="lambda of kl: if small, almost only the worst class counts; if large, all count alike",
    )
    step_size: float = Field(default=0.01, gt=0, description="eta of sagawa")
    omega: Literal["unbiased", "batch"] = Field(
        default="unbiased",
        description="weight of an image: such that the batch is an unbiased estimate for all classes"
        " (unbiased); or from the weights of the batch's classes only, each with the mean of its images"
        " in the batch (batch)",
    )
    groups: Literal["class", "class_origin", "class_domain"] = Field(
        default="class",
        description="what forms a group: classes, classes split into new and memory, or classes per domain",
    )
    gamma_class: float = Field(
        default=0.8, gt=0, le=1, description="weight of the new value in a group's average"
    )
    weight_clip: float | None = Field(default=None, gt=0, description="largest weight of one image")


class GroupWeights:
    """p over the groups that have images now, from moving averages s_k (equation 6) or by ascent.

    Args:
        balanced: whether batches have equally many images of each class.

    Attributes:
        losses: s_k by group id, kept from task to task.
        adversary: q_k of Sagawa et al.
        p: weight of each group, in the order of ``ids``.
    """

    def __init__(self, options: GroupConfig, classes: int, balanced: bool) -> None:
        self.options, self.classes, self.balanced = options, classes, balanced
        self.losses, self.adversary = SampleTable(1), SampleTable(1)
        self.ids = self.counts = torch.zeros(0, dtype=torch.int64)
        self.class_counts = torch.zeros(classes, dtype=torch.int64)
        self.p = torch.zeros(0)

    def begin(self, train: ImageSet, current: Tensor, device: torch.device) -> None:
        """Count the images of each group, of the task and of the memory."""
        labels, domains = torch.from_numpy(train.labels), torch.from_numpy(train.domains)
        groups = self.of(labels, domains, current)
        self.ids, self.counts = (part.to(device) for part in groups.unique(return_counts=True))
        self.class_counts = torch.from_numpy(train.counts(self.classes)).to(device)
        self.p = torch.zeros(len(self.ids), device=device)

    def reset(self) -> None:
        """Forget what was carried over."""
        self.losses, self.adversary = SampleTable(1), SampleTable(1)

    def of(self, labels: Tensor, domains: Tensor, current: Tensor) -> Int64[Tensor, " n"]:
        """Return group ids of images."""
        if self.options.groups == "class_origin":
            return 2 * labels + current
        if self.options.groups == "class_domain":
            return labels + self.classes * domains
        return labels

    def update(self, values: Float[Tensor, " a"], groups: Int64[Tensor, " a"]) -> Float[Tensor, ""]:
        """Take a batch's losses; return the objective: F (equation 6), or sum_k q_k L_k."""
        return (self._ascend if self.options.dro == "sagawa" else self._average)(values, groups)

    def _average(self, values: Float[Tensor, " a"], groups: Int64[Tensor, " a"]) -> Float[Tensor, ""]:
        """Mix the batch's group means into s_k, and take p in closed form."""
        if len(values):
            present, fresh = dro.group_means(values, groups)
            old, seen = self.losses.get(present)
            rate = torch.where(seen, self.options.gamma_class, 1.0)
            self.losses.set(present, (old[:, 0] + rate * (fresh.cpu() - old[:, 0]))[:, None])
        losses, active = self.losses.get(self.ids)
        self.p.zero_()
        if not active.any():
            return torch.zeros(())
        known = losses[active, 0]
        self.p[active.to(self.p.device)] = dro.kl_weights(known, self.options.strength).to(self.p)
        return dro.kl_objective(known, self.options.strength)

    def _ascend(self, values: Float[Tensor, " a"], groups: Int64[Tensor, " a"]) -> Float[Tensor, ""]:
        """Return a step of the adversary on the batch's group means."""
        q, seen = self.adversary.get(self.ids)
        q = torch.where(seen, q[:, 0], 1 / len(self.ids)).to(self.p)
        losses = torch.zeros_like(self.p)
        if len(values):
            present, fresh = dro.group_means(values, groups)
            losses[torch.searchsorted(self.ids, present)] = fresh.to(losses)
        self.p = dro.sagawa_step(q, losses, self.options.step_size)
        self.adversary.set(self.ids, self.p[:, None])
        return (self.p * losses).sum()

    def weights(self, groups: Int64[Tensor, " b"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return omega: how much each image of the batch counts, by how it was drawn."""
        options, where = self.options, torch.searchsorted(self.ids, groups)
        p, counts, most = self.p[where], self.counts[where], options.weight_clip or math.inf
        if options.omega == "batch":  # weights of the batch's groups alone, and means over its images
            present, position = groups.unique(return_inverse=True)
            among = self.p[torch.searchsorted(self.ids, present)]
            p = (among / among.sum().clamp(min=torch.finfo(among.dtype).tiny))[position]
        if options.dro == "sagawa" or options.omega == "batch":  # sagawa's losses are the batch's own
            return dro.balanced_sampling_weights(p, groups, len(groups.unique()), most)
        if self.balanced:
            within = self.class_counts[labels] / counts
            classes = int((self.class_counts > 0).sum())
            return dro.balanced_sampling_weights(p * within, labels, classes, most)
        return dro.uniform_sampling_weights(p, counts, int(self.counts.sum()), most)

    def by_class(self) -> dict[int, float]:
        """Return the total weight of each label's groups."""
        weights: dict[int, float] = {}
        for group, p in zip(self.ids.tolist(), self.p.tolist(), strict=True):
            label = group // 2 if self.options.groups == "class_origin" else group % self.classes
            weights[label] = weights.get(label, 0.0) + p
        return weights
