"""Shrunk linear discriminant analysis on several layers of a frozen tower, from running sums: no training. Ours.

    x       = unit( mean over picture and mirror image of [ r(output) ; w_1 r(stage -1) ; w_2 r(stage -2) ; ... ] )
    r(a)    = unit( sign(a) sqrt(|a|) ),   a stage's mean over positions, a transformer block's class token
    S       = ( G - sum_k n_k mu_k mu_k' ) / n,     P = (S + s m I)^-1,  m = tr(S) / d,  g = mean of the mu_k
    score_k = (x - g)' P (mu_k - g) / |P^1/2 (mu_k - g)|

the cosine of the whitened image and class mean, up to the image's own length. The strength s is chosen by generalised
cross-validation, exactly, from the sums that are kept; `shrinkage=0.5` fixes it. So the classifier is that of all
images at once, whatever the order of tasks, and an image is taken out again by subtracting it.

Where there are domains, S is taken within each class of each domain, a class has a mean in each, drawn to its mean over
all of them as if by `domain_shrinkage` more images, and the class's score is the largest of theirs.

Classes count alike: a class's mean is its own and g is the mean of means. `log_priors` adds log(n_k / n) to the logits.
`stages`, `root`, `mirror`, `scales` and `token` say what is read of the tower, `feature` which output stands first. A
label that was never trained scores -inf.

`adapt` trains the tower in the first task, as in the other closed forms. The tower as it was before stays its `twin`: a
head on each, and an image's score is the sum of both, unless the pretrained tower alone is right about more images of
later tasks, by over one standard error. A fifth of a task's images, at most a thousand, are asked before they are added
to the sums.

    Parameters  none
    State       d x d sums, a sum of features a class and domain (fp64); d = 1904 and 29 MB for the model lite; with a
                twin twice that and an image tower
    Passes      2 of the image tower in all with mirror images, and to predict; 4 with a twin, and those of adapt
    Exemplars   none

Paper: https://arxiv.org/abs/1909.01520 (the sums); https://doi.org/10.1214/aos/1176324456 (ridge and discriminants)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor, nn

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Images, Prompts, Task
from everclip.methods.shared.discriminant import Head, Nearest, Summed, strength, whitened, within_covariance
from everclip.methods.shared.statistics import Scores, Statistics, StatisticsConfig
from everclip.methods.shared.sums import Sums
from everclip.methods.shared.weights import Kept
from everclip.models.depths import Depths

log = logging.getLogger("everclip")

Positive = Annotated[float, Field(gt=0)]
ASKED, MOST_ASKED = 5, 1000
"""One in so many images of a later task is asked before it is added, and about so many at most."""


class Cells(NamedTuple):
    """Sums and counts of the images of a class in a domain, and the class of each."""

    sums: Float64[Tensor, "k m"]
    counts: Int64[Tensor, " k"]
    owner: Int64[Tensor, " k"]


class MultilayerLda(Kept, Statistics):
    """Whitened cosines on several layers."""

    class Config(StatisticsConfig):
        """Options of the features and of the head."""

        search: ClassVar[dict[str, tuple[Any, ...]]] = {"shrinkage": ("gcv", 0.1, 0.3, 1.0, 3.0, 10.0)}

        stages: list[Positive] | None = Field(
            default=None,
            description="weights of the tower's last blocks beside its output, the last block's first; none: 0.5, 0.5"
            " and 0.25, as far as there are blocks",
        )
        root: bool = Field(default=True, description="signed square roots of activations, in place of these")
        mirror: bool = Field(default=True, description="read the mirror image too")
        scales: list[Positive] = Field(
            default=[1.0],
            min_length=1,
            description="sides of the views that are read, as multiples of image_size",
        )
        token: Literal["class", "mean"] = Field(
            default="class",
            description="what is read of a transformer's block: its class token, if it has one, or the patches' mean",
        )
        shrinkage: Positive | Literal["gcv"] = Field(
            default="gcv",
            description="s, as a multiple of the mean variance within classes; or by generalised cross-validation",
        )
        domain_shrinkage: Positive | None = Field(
            default=10.0,
            description="images that a class's mean over all domains counts in its mean of one; none: that mean alone",
        )
        log_priors: bool = Field(
            default=False, description="add the logarithm of a class's fraction of the images"
        )
        twin: bool = Field(
            default=True,
            description="beside a tower that adapt has trained keep the pretrained one, and add the scores of both",
        )

    passes = Passes(lambda stage: (0.0, 0.0), "none", after=(0.0, 2.0), read=lambda stage: 2.0)
    cosines = False
    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.depths = Depths(
            None if config.stages is None else tuple(config.stages),
            config.root,
            config.mirror,
            tuple(config.scales),
            config.token,
            config.feature == "pooled",
        )
        # a tower that trains in the first task cannot be read ahead
        trains = config.adapt != "none"
        self.can(reads="pixels" if trains else "features", depths=None if trains else self.depths)
        self._chosen: float | None = None  # s by cross-validation, of the sums as they are
        self.tower: nn.Module | None = None  # read in place of the model's
        self.twin: MultilayerLda | None = None
        if trains and config.twin:
            self.twin = MultilayerLda(config.model_copy(update={"adapt": "none"}), prompts)

    def grow(self, clip: Clip, task: Task) -> None:
        super().grow(clip, task)
        self.kept_to(clip)
        if self.twin is not None:
            self.twin.tower = self.twin.tower or clip.copy_tower()
            self.twin.grow(clip, task)

    def add(
        self,
        rows: Float64[Tensor, "b m"],
        labels: Int64[Tensor, " b"],
        weights: Float64[Tensor, " b"] | None = None,
    ) -> None:
        super().add(rows, labels, weights)
        self._chosen = None

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self._chosen = None

    def take(self, sums: Sums) -> None:
        """Put a copy of other sums, all of one domain, in place of its own."""
        super().take(sums)
        self.kept, self._chosen = {}, None

    def absorb(self, clip: Clip, task: Task, new: Iterable[Batch]) -> None:
        asked = max(ASKED, len(task.train) // MOST_ASKED) if self.twin is not None and task.index else 0
        aside: list[tuple[Tensor, ...]] = []
        for batch in new:
            columns = [side.rows(side.extract(clip, batch.images)) for side in self.sides]
            columns += [column.to(self.counts.device) for column in (batch.labels, batch.domains)]
            if asked:
                held = (batch.ids % asked == 0).to(self.counts.device)
                aside.append(tuple(column[held] for column in columns))
                columns = [column[~held] for column in columns]
            self.include(*columns)
        if aside:
            held_out = [torch.cat(parts) for parts in zip(*aside, strict=True)]
            self.judge(held_out[:2], held_out[2])
            self.include(*held_out)

    @property
    def sides(self) -> list[MultilayerLda]:
        """This one, and its twin if it has one."""
        return [self] if self.twin is None else [self, self.twin]

    def include(self, *columns: Tensor) -> None:
        """Add images: their rows on each side, labels and domains."""
        *rows, labels, domains = columns
        for side, found in zip(self.sides, rows, strict=True):
            side.add(found, labels)
            side.add_domains(found, labels, domains)

    def judge(self, rows: list[Tensor], labels: Int64[Tensor, " b"]) -> None:
        """Count images, whose rows on both sides are given, that either both heads or the twin's alone are right about.

        Held-out ones, which are in no sum yet.
        """
        known = (self.counts > 0).nonzero()[:, 0]
        ours, twins = (
            side.scorer(known.tolist())(found) for side, found in zip(self.sides, rows, strict=True)
        )
        right, alone = (known[found.argmax(1)] == labels for found in (ours + twins, twins))
        won = torch.stack([(right & ~alone).sum(), (alone & ~right).sum()])
        self.kept["won"] = self.kept.get("won", torch.zeros_like(won)) + won
        more, fewer = self.kept["won"].tolist()
        log.info(
            "held-out images of later tasks: %d right with both towers alone, %d pretrained alone",
            more,
            fewer,
        )

    @property
    def deciding(self) -> list[MultilayerLda]:
        """The sides whose scores add up: both, or the twin where it was right about more by over a standard error."""
        more, fewer = self.kept["won"].tolist() if "won" in self.kept else (0, 0)
        return self.sides if fewer - more <= math.sqrt(more + fewer) else self.sides[1:]

    def add_domains(self, rows: Tensor, labels: Tensor, domains: Tensor, sign: int = 1) -> None:
        """Add images to the sums of their domains; those of domain 0 are what the others leave of all."""
        for domain in domains.unique().tolist():
            if domain:
                there = domains == domain
                targets = self.summed.targets(labels[there])
                for name, more in (("sums", targets.T @ rows[there]), ("counts", targets.sum(0).long())):
                    key = f"{name}{domain}"
                    self.kept[key] = self.kept.get(key, torch.zeros_like(more)) + sign * more

    def extract(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        return self.depths.read(self.tower or clip.model.visual, clip.normalise(images))

    def remove(
        self, rows: Float64[Tensor, "b m"], labels: Int64[Tensor, " b"], domains: Int64[Tensor, " b"]
    ) -> None:
        """Take images out of the sums, as if they had never been added."""
        self.summed.add_(rows, labels, sign=-1)
        self.add_domains(rows, labels, domains, -1)
        self._chosen = None

    def cells(self) -> Cells:
        """Sums of each class in each domain that it has images of; in one domain, of each class."""
        domains = sorted(int(key.removeprefix("sums")) for key in self.kept if key.startswith("sums"))
        if self.config.domain_shrinkage is None:
            domains = []
        parts = [(self.kept[f"sums{domain}"], self.kept[f"counts{domain}"]) for domain in domains]
        rest = self.sums - sum(sums for sums, _ in parts), self.counts - sum(counts for _, counts in parts)
        sums, counts = (torch.stack(column) for column in zip(rest, *parts, strict=True))
        there = counts > 0
        return Cells(sums[there], counts[there], there.nonzero()[:, 1])

    def shrinkage(self, cells: Cells) -> float:
        """s, chosen anew once the sums are others."""
        if self.config.shrinkage != "gcv":
            return self.config.shrinkage
        if self._chosen is None:
            self._chosen = strength(self.gram, cells.sums, cells.counts)
            count = int(self.counts.sum())
            log.info("shrinkage %.3g, by cross-validation on the sums of %d images", self._chosen, count)
        return self._chosen

    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        """The classifier of these labels where there is one domain."""
        head = self.head(labels)
        assert len(head.owner) == len(labels)
        return head.weight, head.bias

    def head(self, labels: list[int]) -> Head:
        """The classifier of these labels, a column for each cell; a label never trained has one of -inf."""
        cells, known = self.cells(), self.counts > 0
        place = torch.full((len(known),), -1, device=known.device)
        place[labels] = torch.arange(len(labels), device=known.device)
        blank = [column for column, label in enumerate(labels) if not known[label]]
        if not known.any():
            nothing = self.sums.new_zeros(self.sums.shape[1], len(labels))
            return Head(nothing, self.silence(labels), torch.arange(len(labels)), 1.0)
        pooled = self.sums / self.counts.clamp(min=1)[:, None]
        means = self.drawn(cells, pooled)
        covariance = within_covariance(self.gram, cells.sums, cells.counts)
        mine = place[cells.owner] >= 0
        weight, bias, lengths = whitened(
            covariance, means[mine], pooled[known].mean(0), self.shrinkage(cells)
        )
        # logits of a discriminant with a common covariance are these scores times the lengths
        factor = (lengths.mean().item() if len(lengths) else 0.0) or 1.0
        owner = place[cells.owner[mine]]
        if self.config.log_priors:
            bias = bias + (self.counts[cells.owner[mine]] / self.counts.sum()).log() / factor
        weight = torch.cat([weight, weight.new_zeros(len(weight), len(blank))], 1)
        bias = torch.cat([bias, bias.new_full((len(blank),), -torch.inf)])
        owner = torch.cat([owner, torch.tensor(blank, dtype=torch.int64, device=owner.device)])
        order = owner.argsort(stable=True)
        return Head(weight[:, order], bias[order], owner[order], factor)

    def drawn(self, cells: Cells, pooled: Float64[Tensor, "c m"]) -> Float64[Tensor, "k m"]:
        """Means of the cells, drawn to those of their classes over all domains."""
        several = cells.owner.bincount(minlength=len(pooled)) > 1
        extra = (self.config.domain_shrinkage or 0.0) * several[cells.owner].double()[:, None]
        return (cells.sums + extra * pooled[cells.owner]) / (cells.counts[:, None] + extra)

    def scorer(self, labels: list[int]) -> Callable[[Float64[Tensor, "b m"]], Float64[Tensor, "b c"]]:
        """The map from features to scores of these labels."""
        return Nearest(lambda rows: rows, self.head(labels), len(labels))

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        parts = [side.nearest(clip, list(labels)) for side in self.deciding]
        return parts[0] if len(parts) == 1 else Summed(parts)

    def nearest(self, clip: Clip, labels: list[int]) -> Nearest:
        """The classifier of one tower."""
        head = self.head(labels)
        linear = Nearest(lambda images: self.query(clip, images), head, len(labels))
        linear.to_logits = head.to_logits
        return linear
