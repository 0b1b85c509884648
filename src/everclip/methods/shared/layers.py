"""Solve one linear head from sums over several layers of a tower, with a mean for each class of each domain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Prompts, Task
from everclip.methods.shared.discriminant import Head, Nearest, strength, whitened, within_covariance
from everclip.methods.shared.statistics import Cells, Labels, LinearStatistics, Rows, Scores, StatisticsConfig
from everclip.methods.shared.sums import Sums, halved, whole
from everclip.methods.shared.weights import Kept
from everclip.models.depths import Depths

log = logging.getLogger("everclip")

Positive = Annotated[float, Field(gt=0)]


class LayersConfig(StatisticsConfig):
    """Options of the features and of the head."""

    search: ClassVar = {"shrinkage": ("gcv", 0.1, 0.3, 1.0, 3.0, 10.0)}

    stages: list[Positive] | Literal["equal"] | None = Field(
        default="equal",
        description="weights of the last blocks relative to the output, last block first; equal: 1 each, for six"
        " stages of a convolutional tower or three blocks of a transformer; none: 0.5, 0.5 and 0.25",
        json_schema_extra={"before": None, "until": 2},
    )
    root: bool = Field(default=True, description="use signed square roots of the activations")
    mirror: bool = Field(default=True, description="also read the mirror image")
    scales: list[Positive] = Field(
        default=[1.0], min_length=1, description="sides of the views, as multiples of image_size"
    )
    token: Literal["class", "mean"] = Field(
        default="class",
        description="what to read of a transformer's block: class token, if any, or mean over patches",
    )
    shrinkage: Positive | Literal["gcv"] = Field(
        default="gcv",
        description="s, as a multiple of the mean variance in classes; gcv: by generalised cross-validation",
    )
    domain_shrinkage: Positive | None = Field(
        default=10.0,
        description="weight, in images, of a class's mean over all domains in its mean per domain; none: one for all",
    )
    log_priors: bool = Field(
        default=False, description="add the logarithm of a class's fraction of the images"
    )

    @property
    def depths(self) -> Depths:
        """What is read from a tower."""
        stages = tuple(self.stages) if isinstance(self.stages, list) else self.stages
        pooled = self.feature == "pooled"
        return Depths(stages, self.root, self.mirror, tuple(self.scales), self.token, pooled)


class Layers(Kept, LinearStatistics):
    """Whitened cosines on several layers of one tower. Half of G is saved, as it is symmetric."""

    passes = Passes(lambda stage: (0.0, 0.0), "none", after=(0.0, 2.0), read=lambda stage: 2.0)
    cosines = False

    def __init__(self, config: LayersConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.read_at(config.depths)
        self._chosen: float | None = None  # s by cross-validation, from the present sums

    def absorb(self, clip: Clip, task: Task, new: Iterable[Batch]) -> None:
        for batch in new:
            labels, domains = (part.to(self.counts.device) for part in (batch.labels, batch.domains))
            self.include(self.query(clip, batch.images), labels, domains)

    def include(self, rows: Rows, labels: Labels, domains: Labels) -> None:
        """Add images to the sums of all and to those of their domains."""
        self.add(rows, labels)
        self.add_domains(rows, labels, domains)

    def add(self, rows: Rows, labels: Labels) -> None:
        super().add(rows, labels)
        self._chosen = None

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"strength": self._chosen}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        found = state.get(
            "strength"
        )  # of the sums saved with it, as choosing it takes most of opening a model
        self._chosen = found if isinstance(found, float) and 0 < found < float("inf") else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._built:
            destination[f"{prefix}gram"] = halved(destination[f"{prefix}gram"])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any, **more: Any) -> None:
        if (name := f"{prefix}gram") in state_dict and self._built:
            state_dict[name] = whole(state_dict[name], len(self.gram))
        super()._load_from_state_dict(state_dict, prefix, *others, **more)

    def state_bytes(self) -> int:
        grams = [side.gram for side in self.modules() if isinstance(side, Layers) and side._built]
        return super().state_bytes() - sum(len(g) * (len(g) - 1) // 2 * g.itemsize for g in grams)

    def take(self, sums: Sums) -> None:
        """Replace its sums by a copy of others, all of one domain."""
        super().take(sums)
        self.settle()
        self.kept, self._chosen = {}, None

    def settle(self) -> None:
        """Make G symmetric to the last bit, so that what is saved is what is used."""
        self.gram.copy_(whole(halved(self.gram), len(self.gram)))

    def add_domains(self, rows: Tensor, labels: Tensor, domains: Tensor, sign: int = 1) -> None:
        """Add images to the sums of their domains; those of domain 0 are all less the others."""
        for domain in domains.unique().tolist():
            if domain:
                there = domains == domain
                targets = self.summed.targets(labels[there])
                for name, more in (("sums", targets.T @ rows[there]), ("counts", targets.sum(0).long())):
                    key = f"{name}{domain}"
                    self.kept[key] = self.kept.get(key, torch.zeros_like(more)) + sign * more

    def remove(self, rows: Rows, labels: Labels, domains: Labels) -> None:
        """Take images out of the sums, as if they had never been added."""
        self.summed.add_(rows, labels, sign=-1)
        self.add_domains(rows, labels, domains, -1)
        self._chosen = None

    def cells(self) -> Cells:
        """Return the sums of each class in each domain where it has images; with one domain, of each class."""
        domains = sorted(int(key.removeprefix("sums")) for key in self.kept if key.startswith("sums"))
        if self.options.domain_shrinkage is None:
            domains = []
        parts = [(self.kept[f"sums{domain}"], self.kept[f"counts{domain}"]) for domain in domains]
        rest = self.sums - sum(sums for sums, _ in parts), self.counts - sum(counts for _, counts in parts)
        sums, counts = (torch.stack(column) for column in zip(rest, *parts, strict=True))
        there = counts > 0
        return Cells(sums[there], counts[there], there.nonzero()[:, 1])

    def shrinkage(self, cells: Cells) -> float:
        """Return s, chosen anew when the sums have changed."""
        if self.options.shrinkage != "gcv":
            return self.options.shrinkage
        if self._chosen is None:
            self._chosen = strength(self.gram, cells.sums, cells.counts)
            count = int(self.counts.sum())
            log.info("shrinkage %.3g, by cross-validation on the sums of %d images", self._chosen, count)
        return self._chosen

    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        """Return the classifier of these labels where there is one domain."""
        head = self.head(labels)
        assert len(head.owner) == len(labels)
        return head.weight, head.bias

    def head(self, labels: list[int]) -> Head:
        """Return the classifier of these labels, a column per cell, and one of -inf for a label never trained."""
        cells, known = self.cells(), self.counts > 0
        place = torch.full((len(known),), -1, device=known.device)
        place[labels] = torch.arange(len(labels), device=known.device)
        blank = [column for column, label in enumerate(labels) if not known[label]]
        if not known.any():
            nothing = self.sums.new_zeros(self.sums.shape[1], len(labels))
            return Head(nothing, self.silence(labels), torch.arange(len(labels)), 1.0)
        pooled = self.summed.means
        covariance = within_covariance(self.gram, cells.sums, cells.counts)
        mine = place[cells.owner] >= 0
        means, centre = self.drawn(cells, pooled)[mine], pooled[known].mean(0)
        weight, bias, lengths = whitened(covariance, means, centre, self.shrinkage(cells))
        # logits of a discriminant with a common covariance are these scores times the lengths
        factor = (lengths.mean().item() if len(lengths) else 0.0) or 1.0
        owner = place[cells.owner[mine]]
        if self.options.log_priors:
            bias = bias + (self.counts[cells.owner[mine]] / self.counts.sum()).log() / factor
        weight = torch.cat([weight, weight.new_zeros(len(weight), len(blank))], 1)
        bias = torch.cat([bias, bias.new_full((len(blank),), -torch.inf)])
        owner = torch.cat([owner, torch.tensor(blank, dtype=torch.int64, device=owner.device)])
        order = owner.argsort(stable=True)
        return Head(weight[:, order], bias[order], owner[order], factor)

    def drawn(self, cells: Cells, pooled: Float64[Tensor, "c m"]) -> Float64[Tensor, "k m"]:
        """Return means of the cells, shrunk towards those of their classes over all domains."""
        several = cells.owner.bincount(minlength=len(pooled)) > 1
        extra = (self.options.domain_shrinkage or 0.0) * several[cells.owner].double()[:, None]
        return (cells.sums + extra * pooled[cells.owner]) / (cells.counts[:, None] + extra)

    def scorer(self, labels: list[int]) -> Callable[[Rows], Float64[Tensor, "b c"]]:
        """Return the map from features to scores of these labels."""
        return Nearest(lambda rows: rows, self.head(labels), len(labels))

    def nearest(self, clip: Clip, labels: list[int]) -> Nearest:
        """Return the classifier of one tower."""
        return Nearest(lambda images: self.query(clip, images), self.head(labels), len(labels))
