"""Linear discriminant analysis from running sums (Deep SLDA, Hayes and Kanan 2020): no training.

    score_k = <x, L mu_k> - 1/2 mu_k' L mu_k,    L = ( (1 - eps) Sigma + eps t I )^-1
    Sigma   = ( G - sum_k n_k mu_k mu_k' ) / n

the pooled within-class covariance, exact and the same in any order of images. eps comes from oracle-approximating
shrinkage (Chen et al. 2010), from generalised cross-validation (`eps=gcv`, as in `multilayer_lda`), or is a number; t
is the mean variance tr(Sigma) / d. Unit-length features have variances near 1 / d, so Deep SLDA's eps = 1e-4 with t = 1
(`eps=1e-4 target=one`) would be a large fraction. `log_priors` adds log(n_k / n).

`streaming` is the update of the authors' code, image after image, delta = x - mu_y before the mean moves:

    Sigma <- ( n Sigma + n/(n + 1) delta delta' ) / (n + 1),    mu_y <- mu_y + delta / (n_y + 1)

with n the images of all classes: it depends on their order, and for a class's first image delta is the image itself.
Their start from a covariance of the first task's images is left out. A label that was never trained scores -inf.

    Parameters  none
    State       d x d sums, a sum of features per class (fp64)
    Passes      1 of the image tower in all; in the first task those of adapt too
    Exemplars   none

Paper: https://arxiv.org/abs/1909.01520
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from everclip.errors import UserError
from everclip.methods.base.method import Clip, Prompts
from everclip.methods.shared import closed_form
from everclip.methods.shared.discriminant import strength, within_covariance
from everclip.methods.shared.statistics import Labels, LinearStatistics, Rows, Scores, StatisticsConfig


class Slda(LinearStatistics):
    """Streaming linear discriminant analysis."""

    class Config(StatisticsConfig):
        search: ClassVar = {"eps": ("oas", "gcv", 0.0001, 0.001, 0.01)}

        eps: Annotated[float, Field(gt=0, le=1)] | Literal["oas", "gcv"] = Field(
            default="oas",
            description="shrinkage: oracle-approximating, by generalised cross-validation, or a fraction",
        )
        target: Literal["mean", "one"] = Field(
            default="mean", description="target of the shrinkage: mean variance, or 1"
        )
        streaming: bool = Field(
            default=False,
            description="use the covariance of Deep SLDA's code, which depends on the order of images",
        )
        log_priors: bool = Field(
            default=False, description="add the logarithm of a class's fraction of the images"
        )

    cosines = False
    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        if config.eps == "gcv" and config.streaming:
            raise UserError(
                "method.eps=gcv chooses by sums that method.streaming=true does not keep: use one of the two"
            )

    @property
    def exact(self) -> bool:
        return not self.config.streaming

    def add(self, rows: Rows, labels: Labels) -> None:
        """Add images; where streaming, ``gram`` holds n Sigma, to which an image adds n/(n + 1) delta delta'."""
        if not self.config.streaming:
            super().add(rows, labels)
            return
        before = int(self.counts.sum())
        deltas = torch.empty_like(rows)
        for place, label in enumerate(labels.tolist()):
            deltas[place] = rows[place] - self.sums[label] / self.counts[label].clamp(min=1)
            self.sums[label] += rows[place]
            self.counts[label] += 1
        n = torch.arange(before, before + len(rows), device=rows.device).double()
        self.gram.addmm_(deltas.T * (n / (n + 1)), deltas)

    def covariance(self) -> Float64[Tensor, "m m"]:
        """Return Sigma; exactly 0 where nothing but rounding errors is left, as with one image per class."""
        if self.config.streaming:
            return self.gram / self.counts.sum()
        return within_covariance(self.gram, self.sums, self.counts)

    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        config, counts, sigma = self.config, self.counts[labels], self.covariance()
        mean = sigma.diagonal().mean().item() or 1.0
        target = 1.0 if config.target == "one" else mean
        if config.eps == "oas":
            eps = closed_form.oas(sigma, int(self.counts.sum()))
        elif config.eps == "gcv":
            ridge = strength(self.gram, self.sums, self.counts) * mean / target
            eps = ridge / (1 + ridge)  # that of Sigma + ridge t I, up to a factor
        else:
            eps = config.eps
        regular, means = closed_form.shrunk(sigma, eps, target), self.summed.means[labels]
        weight, bias = closed_form.discriminants(regular, means)
        if config.log_priors:
            bias = bias + (counts.clamp(min=1) / self.counts.sum()).log()
        return weight, bias + self.silence(labels)
