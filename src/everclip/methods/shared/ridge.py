"""Fit one-hot labels by ridge regression on features, as they are or after a fixed random layer; choose lam."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from everclip.methods.base.method import Batch, Clip, MethodConfig, Prompts, Task
from everclip.methods.shared.closed_form import Spectrum, best_lam, ridge
from everclip.methods.shared.statistics import Labels, LinearStatistics, Rows, Scores, StatisticsConfig
from everclip.methods.shared.sums import Sums
from everclip.seeding import generator

log = logging.getLogger("everclip")

Weights = Float64[Tensor, " b"]
"""How often each image counts."""
GRID = tuple(10.0**exponent for exponent in range(-8, 9))
"""The lams that are tried."""
FIT = 0.8
"""Fraction of a task's images to fit on; the rest choose lam."""
CHUNK = 128
"""Images whose random features are made at once."""
USUAL = 0.3
"""lam where it is neither given nor chosen."""


def _lam(**extra: Any) -> Any:
    said = (
        "strength of the ridge, for lam_choice=fixed or gcv; choices on images use it only if there are too few"
        " images; none: chosen by lam_choice, or 0.3 if that chooses nothing"
    )
    return Field(default=None, gt=0, description=said, json_schema_extra=extra or None)


def _choice(**extra: Any) -> Any:
    return Field(
        default="gcv",
        description="how to choose lam: by generalised cross-validation on the sums, unless lam is given"
        " (gcv); lam itself (fixed); or the best of 1e-8, 1e-7, ..., 1e8 on a fifth of each new task's"
        " images, fitted on the rest of them (task) or on that and all earlier tasks (seen)",
        json_schema_extra=extra or None,
    )


class LamConfig(MethodConfig):
    """Options of the strength of the ridge."""

    lam: float | None = _lam()
    lam_unit: Literal["relative", "absolute"] = Field(
        default="relative", description="lam as a multiple of the mean of G's diagonal, or as it is"
    )
    lam_choice: Literal["gcv", "fixed", "task", "seen"] = _choice()
    class_weights: bool = Field(
        default=False,
        description="weight an image by 1 / (images of its class in its task), so that classes count alike",
    )

    @property
    def choice(self) -> str:
        """How lam is chosen: a value that is given needs no choice by the sums."""
        return "fixed" if self.lam_choice == "gcv" and self.lam is not None else self.lam_choice


class RidgeConfig(LamConfig, StatisticsConfig):
    """Options of ridge regression, on features that another method may train first."""

    lam: float | None = _lam(before=USUAL)
    lam_choice: Literal["gcv", "fixed", "task", "seen"] = _choice(before="fixed")


class RidgeMethod(LinearStatistics):
    """W = (G + lam I)^-1 Q. lam enters when the equation is solved, so once, and not with each task.

    Attributes:
        random_features: width of the random layer; 0: none.
        met: where classes are weighted, the number of tasks with images of each; in a task its weights sum to 1.
    """

    grid: ClassVar[tuple[float, ...]] = GRID
    """The lams that a choice by images tries."""
    bias: ClassVar[bool] = False
    """Whether a 1 is appended to the features."""
    uniform: ClassVar[bool] = False
    """Whether the random layer's weights are uniform in +-1/sqrt(inputs); else they are normal."""

    projection: Float[Tensor, "d m"]
    chosen: Float64[Tensor, ""]
    met: Int64[Tensor, " c"]

    def __init__(self, config: LamConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.random_features = 0
        self._best: tuple[int, float] = (0, 0.0)  # number of images, and lam by cross-validation on them

    def widen(self, width: int) -> None:
        """Put a random layer of this width (0: none) before the regression."""
        self.random_features = width
        self.passes = self.passes._replace(sums=8 * width**2)

    @property
    def seeded(self) -> bool:
        held_out = self.options.choice in ("first", "task", "seen")  # images drawn by the seed
        return super().seeded or self.random_features > 0 or held_out

    @property
    def exact(self) -> bool:
        return not self.options.class_weights

    def draw(self, inputs: int, outputs: int) -> Float[Tensor, "d m"]:
        """Draw the random layer's weights from torch's random state, which a run's seed decides."""
        if self.uniform:
            return torch.empty(inputs, outputs).uniform_(-(inputs**-0.5), inputs**-0.5)
        return torch.randn(inputs, outputs)

    def build(self, clip: Clip, width: int) -> None:
        """Draw the random layer, which is not a part of the state: a resume draws the same one again."""
        if self.random_features:
            drawn = self.draw(width, self.random_features).to(clip.device)
            self.register_buffer("projection", drawn, persistent=False)
        super().build(clip, (self.random_features or width) + self.bias)
        self.register_buffer("chosen", self.sums.new_zeros(()))  # 0: none yet
        if self.options.choice == "gcv" and self.options.class_weights:
            self.register_buffer("square", self.sums.new_zeros(()))  # |Y|^2, otherwise the number of images
        if self.options.class_weights:
            self.register_buffer("met", torch.zeros_like(self.counts), persistent=False)

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | ({"met": self.met} if "met" in self._buffers else {})

    def set_extra_state(self, state: Any) -> None:
        """Restore what is not a buffer; in a state without ``met``, each class had one task."""
        super().set_extra_state(state)
        if "met" in self._buffers:
            self.met.copy_(state.get("met", self.counts > 0))

    def lift(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        found = (features @ self.projection).relu() if self.random_features else features
        return pad(found, (0, 1), value=1.0) if self.bias else found

    def absorb(self, clip: Clip, task: Task, new: Iterable[Batch]) -> None:
        """Add the images of a task; they are looked at twice where classes are weighted or lam is chosen."""
        options, seed = self.options, 0
        if options.choice in ("gcv", "fixed") and not options.class_weights:
            super().absorb(clip, task, new)
            return
        parts = []
        for batch in new:
            parts += self.extracted(clip, [batch])
            seed = batch.seed
        features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        counts = labels.bincount(minlength=len(self.counts)).double()
        weights = 1 / counts[labels] if options.class_weights else torch.ones_like(labels).double()
        if options.class_weights:
            self.met += counts > 0
        if options.choice not in ("gcv", "fixed") and len(labels) > 1:
            order = torch.from_numpy(generator(seed, "ridge", task.index).permutation(len(labels)))
            self.choose(features, labels, weights, order.to(labels.device))
            log.info("%s: lambda %.3g, chosen on %d images", task.name, self.chosen.item(), len(labels))
        for part in torch.arange(len(labels), device=labels.device).split(CHUNK):
            self.add(self.rows(features[part]), labels[part], weights[part])
        if "square" in self._buffers:
            self.get_buffer("square").add_(weights.sum())

    def take(self, sums: Sums) -> None:
        super().take(sums)
        self._best = (0, 0.0)

    def add(self, rows: Rows, labels: Labels, weights: Weights | None = None) -> None:
        """Add images, each counted as often as its weight says (``counts`` excepted)."""
        self.summed.add_(rows, labels, weights)

    def choose(self, features: Float[Tensor, "b d"], labels: Labels, weights: Weights, order: Labels) -> None:
        """Set lam to the one with the least squared error on the last fifth of ``order``."""

        def scaled(part: Tensor) -> tuple[Tensor, Tensor]:
            root = weights[part].sqrt()[:, None]
            return root * self.rows(features[part]), root * self.summed.targets(labels[part])

        count = max(1, int(FIT * len(order)))
        fit, held = order[:count], order[count:]
        old = self.options.choice == "seen"
        if not old and count < len(self.gram):
            spectrum = Spectrum.of_rows(*scaled(fit))
        else:
            gram, cross = self.gram * old, self.sums.T * old
            for part in fit.split(CHUNK):
                rows, targets = scaled(part)
                gram.addmm_(rows.T, rows)
                cross.addmm_(rows.T, targets)
            spectrum = Spectrum.of_gram(gram, cross)
        errors = [spectrum.errors(*scaled(part), self.grid) for part in held.split(CHUNK)]
        self.chosen.fill_(self.grid[int(torch.stack(errors).sum(0).argmin())])

    def strength(self, prior: Float64[Tensor, "m c"] | None = None) -> float:
        """Return lam, in units of G; ``prior`` is what the classifier of all labels is shrunk towards, else 0."""
        if self.chosen > 0:
            return self.chosen.item()
        count = int(self.counts.sum())
        if self.options.choice == "gcv" and count:
            if self._best[0] != count:
                square = self.get_buffer("square").item() if "square" in self._buffers else count
                lam = best_lam(self.gram, self.sums.T, square, count, prior)
                self._best = (count, lam)
                log.info("lambda %.3g, by cross-validation on the sums of %d images", lam, count)
            return self._best[1]
        lam = USUAL if self.options.lam is None else self.options.lam
        if self.options.lam_unit == "relative":
            return lam * self.gram.diagonal().mean().item()
        if (
            self.options.class_weights
        ):  # weights whose mean over the classes is 1, where G has 1 / n_k of each task
            known = self.counts > 0
            mean_weights = (
                self.met.clamp(min=1) / self.counts
            )  # 0 tasks if images were added outside any task
            return lam * mean_weights[known].mean().item()
        return lam

    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        return ridge(self.gram, self.sums[labels].T, self.strength()), self.silence(labels)
