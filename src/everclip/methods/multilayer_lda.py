"""Shrunk linear discriminant analysis on several layers of a frozen tower, from running sums: no training. Ours.

    x       = unit( mean over picture and mirror image of [ r(output) ; w_1 r(stage -1) ; w_2 r(stage -2) ; ... ] ),
              w_j = 1 for the last six stages of a convolutional tower or the last three blocks of a transformer
    r(a)    = unit( sign(a) sqrt(|a|) ),   a stage's mean over positions, a transformer block's class token
    S       = ( G - sum_k n_k mu_k mu_k' ) / n,     P = (S + s m I)^-1,  m = tr(S) / d,  g = mean of the mu_k
    score_k = (x - g)' P (mu_k - g) / |P^1/2 (mu_k - g)|

the cosine of the whitened image and class mean, up to the image's own length. The strength s is chosen by generalised
cross-validation, exactly, from the sums that are kept; `shrinkage=0.5` fixes it. So the classifier is that of all
images at once, whatever the order of tasks, and subtracting an image takes it out again.

Where there are domains, S is taken within each class of each domain. A class has a mean in each domain, shrunk towards
its mean over all of them as if by `domain_shrinkage` more images, and its score is the largest over domains.

Classes count equally: g is the mean of the class means. `log_priors` adds log(n_k / n) to the logits. `stages`, `root`,
`mirror`, `scales` and `token` say what is read from the tower, `feature` which output comes first. A label that was
never trained scores -inf.

`adapt` trains the tower in the first task, as in the other closed forms. The tower as it was before is kept as its
`twin`. Each has a head, and an image's score is the twin's plus w times the trained one's. w is 1 unless another value,
from 0 to 8, is right about more images of later tasks by over two standard errors. For this, a fifth of these images,
at most about a thousand per task, are held out and classified before they are added to the sums. `fusion_weight=0.5`
fixes w, so none are held out; 0 is the method without `adapt`.

With a memory of at least `follow_from` exemplars per class, `adapt` continues in later tasks, on new images and
exemplars. The twin's sums stay exact, and those of the trained tower are made from them (methods/shared/drift.py). As
the trained tower fits its exemplars too well, its s is `follow_shrinkage`. A fifth of the new images and exemplars
trains nothing and decides on w, except exemplars of the first task, on which the tower has trained.

    Parameters  none
    State       half of d x d sums, a sum of features per class and domain (fp64); d = 2048 and 17 MB for the model
                lite; with a twin, the same for each tower and an image tower
    Passes      2 of the image tower in all with mirror images, and to predict; 4 with a twin, and those of adapt
    Exemplars   none; with adapt, a twin and follow_from per class, trains on exemplars and new images

Paper: https://arxiv.org/abs/1909.01520 (the sums); https://doi.org/10.1214/aos/1176324456 (ridge and discriminants)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Prompts, Task
from everclip.methods.shared.discriminant import Summed
from everclip.methods.shared.drift import Carrier, Moves
from everclip.methods.shared.layers import Layers, LayersConfig, Positive
from everclip.methods.shared.statistics import Cells
from everclip.methods.shared.sums import Sums

log = logging.getLogger("everclip")

FIRST, WON, FOLLOWED = "first", "won by weight", "followed"
"""Names of what is kept: ids of the first task, which do not decide on w; for each two weights, the number of images
that only the first was right about; that adapt has continued."""
WEIGHTS = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.0)
"""Weights of the trained tower's scores to try, the preferred first."""
ASKED, MOST_ASKED = 5, 1000
"""Of a later task, one image in ``ASKED`` is held out before it is added, at most about ``MOST_ASKED`` in all."""


class MultilayerLda(Layers):
    """Whitened cosines on several layers, of one tower or of two."""

    class Config(LayersConfig):
        twin: bool = Field(
            default=True,
            description="keep the pretrained tower beside the one that adapt trains, and add their scores",
        )
        follow_from: int | None = Field(
            default=5,
            ge=1,
            description="with a twin, exemplars per class that adapt needs to continue in later tasks; none:"
            " never",
        )
        follow_shrinkage: Positive | Literal["gcv"] = Field(
            default=3.0,
            description="shrinkage of the trained tower's head once adapt has continued",
        )
        fusion_weight: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
            default="auto",
            description="weight of the trained tower's scores relative to the twin's; 0: use the twin alone; auto: 1"
            " unless held-out images clearly prefer another",
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.twin: Layers | None = None
        if config.adapt != "none" and config.twin:
            self.twin = Layers(config.model_copy(update={"adapt": "none"}), prompts)
            self.passes = self.passes._replace(
                after=(0.0, 4.0), read=lambda stage: 4.0, saved=lambda stage: 1.0
            )
            self.follows = config.follow_from
            self.can(uses_memory=config.follow_from is not None, fewest=config.follow_from or 1)

    def grow(self, clip: Clip, task: Task) -> None:
        super().grow(clip, task)
        if self.twin is not None:
            self.twin.tower = self.twin.tower or clip.copy_tower()
            self.twin.grow(clip, task)

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Add the task's images; if it has trained on exemplars, make the trained tower's sums from the twin's."""
        following = self.following
        super().end_task(clip, task, () if following else new, memory)
        if following:
            self.follow(clip, new, memory)
        elif task.index == 0 and self.goes_on and self.asks:
            self.kept[FIRST] = torch.from_numpy(task.train.ids[task.train.ids % ASKED == 0])
        for side in self.sides:
            side.settle()
        for side in self.deciding:  # what they choose is saved, so that opening the model need not choose it
            if side.counts.any():
                side.shrinkage(side.cells())

    def trains_on(self, images: ImageSet) -> NDArray[np.bool_]:
        """Return, in later tasks, all but a fifth (by id), which later decides on the weight of the towers.

        Exemplars of the first task in this fifth have trained in that task: they neither train again nor weigh the
        towers, and only show how features have moved.
        """
        return images.ids % ASKED != 0 if FIRST in self.kept else super().trains_on(images)

    def follow(self, clip: Clip, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Add images to the twin's sums, and make the trained tower's from these.

        Images that no phase has seen weigh the towers first, while they are in neither's sums.
        """
        twin = self.twin
        assert twin is not None
        before, moves = twin.counts.clone(), Moves(len(self.sums), self.sums.shape[1], self.sums.device)
        ids: list[Tensor] = []
        aside: list[tuple[Tensor, ...]] = []

        def move(columns: tuple[Tensor, ...], asked: Tensor, weights: Tensor) -> None:
            twins, ours, labels, _ = (column[~asked] for column in columns)
            moves.add(twins, ours, labels, weights[~asked])
            aside.append(tuple(column[asked] for column in columns))

        for batch in new:
            columns = rows, _, labels, domains = self.both(clip, batch)
            twin.include(rows, labels, domains)
            move(columns, self.asked(batch), rows.new_ones(len(rows)))
            ids.append(batch.ids)
        left = (without(batch, torch.cat(ids)) for batch in memory)
        old = [(self.both(clip, batch), self.asked(batch)) for batch in left if len(batch)]
        counts = torch.zeros_like(before)  # all 0 where no class keeps an exemplar any more
        for (_, _, labels, _), _ in old:
            counts += labels.bincount(minlength=len(before))
        for columns, asked in old:  # an exemplar stands for all images of its class before this task
            move(columns, asked, (before.double() / counts)[columns[2]])
        carrier = moves.carrier()
        if self.asks:
            whole, kept = Sums(twin.gram.clone(), twin.sums.clone(), twin.counts.clone()), dict(twin.kept)
            rows, others, labels, domains = (torch.cat(parts) for parts in zip(*aside, strict=True))
            twin.remove(rows, labels, domains)
            self.carry(carrier)
            self.kept.pop(WON, None)  # of the former tower, from exemplars that are judged again
            self.judge(rows, others, labels)
            twin.take(whole)  # exact to the last bit, which adding them again would not be
            twin.kept = kept
        self.carry(carrier)

    @property
    def asks(self) -> bool:
        """Whether images are held out to weigh the towers."""
        return self.config.fusion_weight == "auto"

    def asked(self, batch: Batch) -> Bool[Tensor, " b"]:
        """Return which images of a later task and of the memory no phase has seen, on the device of the sums."""
        if not self.asks:
            return torch.zeros(len(batch), dtype=torch.bool, device=self.counts.device)
        held = (batch.ids % ASKED == 0) & ~torch.isin(batch.ids, self.kept[FIRST].cpu())
        return held.to(self.counts.device)

    def carry(self, carrier: Carrier) -> None:
        """Make the trained tower's sums from the twin's."""
        twin = self.twin
        assert twin is not None
        aside = {name: self.kept[name] for name in (FIRST, WON) if name in self.kept}
        gram = carrier.gram(twin.gram, twin.sums, twin.counts)
        self.take(Sums(gram, carrier.sums(twin.sums, twin.counts), twin.counts))
        for key, found in twin.kept.items():
            counted = twin.kept[key.replace("sums", "counts")]
            self.kept[key] = carrier.sums(found, counted) if key.startswith("sums") else found.clone()
        self.kept |= aside | {FOLLOWED: torch.ones(1, device=self.counts.device)}

    def both(self, clip: Clip, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return rows of the twin and of this side, labels and domains, on the device of the sums."""
        twins, ours = (side.query(clip, batch.images) for side in self.sides)
        labels, domains = (part.to(self.counts.device) for part in (batch.labels, batch.domains))
        return twins, ours, labels, domains

    def absorb(self, clip: Clip, task: Task, new: Iterable[Batch]) -> None:
        if self.twin is None:
            return super().absorb(clip, task, new)
        asked = max(ASKED, len(task.train) // MOST_ASKED) if task.index and self.asks else 0
        aside: list[tuple[Tensor, ...]] = []
        for batch in new:
            columns = self.both(clip, batch)
            if asked:
                held = (batch.ids % asked == 0).to(self.counts.device)
                aside.append(tuple(column[held] for column in columns))
                columns = tuple(column[~held] for column in columns)
            self.include_both(*columns)
        if aside:
            twins, ours, labels, domains = (torch.cat(parts) for parts in zip(*aside, strict=True))
            self.judge(twins, ours, labels)
            self.include_both(twins, ours, labels, domains)

    def include_both(self, twins: Tensor, ours: Tensor, labels: Tensor, domains: Tensor) -> None:
        """Add images, whose rows on both sides are given."""
        for side, rows in zip(self.sides, (twins, ours), strict=True):
            side.include(rows, labels, domains)

    @property
    def sides(self) -> list[Layers]:
        """The twin, if it has one, and this one."""
        return [self] if self.twin is None else [self.twin, self]

    def judge(self, twins: Tensor, ours: Tensor, labels: Int64[Tensor, " b"]) -> None:
        """Count, for each two weights, the held-out images (in no sum yet) that only the first is right about."""
        known = (self.counts > 0).nonzero()[:, 0]
        found = zip(self.sides, (twins, ours), strict=True)
        before, after = (side.scorer(known.tolist())(rows) for side, rows in found)
        answers = (known[(before + weight * after).argmax(1)] for weight in WEIGHTS)
        right = torch.stack([answer == labels for answer in answers])
        won = (right[:, None] & ~right).sum(-1)
        self.kept[WON] = self.kept.get(WON, torch.zeros_like(won)) + won
        log.info("the trained tower's scores count %g times the pretrained one's", self.weight)

    @property
    def weight(self) -> float:
        """The weight of the trained tower's scores; the twin's is 1."""
        fixed = self.config.fusion_weight
        if fixed != "auto":
            return fixed
        if WON not in self.kept:
            return WEIGHTS[0]
        won = self.kept[WON]
        beaten = ((won.T - won) > 2 * (won + won.T).sqrt()).any(1).tolist()
        return WEIGHTS[beaten.index(False)]

    @property
    def deciding(self) -> dict[Layers, float]:
        """Return the sides whose scores add up, and their weights."""
        sides = zip(self.sides, [1.0, self.weight] if self.twin else [1.0], strict=True)
        return {side: weight for side, weight in sides if weight}

    @property
    def exact(self) -> bool:
        """Whether its sums are those of the only tower that classifies; with a twin they never are."""
        return [*self.deciding] == [self]

    def shrinkage(self, cells: Cells) -> float:
        """Return s, which is ``follow_shrinkage`` where the sums are made from the twin's."""
        fixed = self.config.follow_shrinkage
        return super().shrinkage(cells) if fixed == "gcv" or FOLLOWED not in self.kept else fixed

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        parts = {side.nearest(clip, list(labels)): weight for side, weight in self.deciding.items()}
        return next(iter(parts)) if len(parts) == 1 else Summed(parts)


def without(batch: Batch, ids: Int64[Tensor, " n"]) -> Batch:
    """Return the plain images of a batch whose ids are not among these."""
    kept = ~torch.isin(batch.ids, ids)
    columns = ("images", "labels", "domains", "ids", "current")
    return replace(batch, **{name: getattr(batch, name)[kept] for name in columns})
