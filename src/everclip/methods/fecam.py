"""Mahalanobis distances to class means, with a covariance per class, on frozen features (FeCAM, Goswami et al. 2023).

    d_k = (x - m_k)' pinv(C_k) (x - m_k),    predict argmin_k d_k
    C_k = correlations of S_k + a1 V1 I + a2 V2 (11' - I)

m_k and S_k are the mean and the unbiased covariance of class k's features, V1 the mean variance and V2 the mean
covariance of S_k. x has unit length; means are not normalised. The authors' scripts for ViTs have a1 = 1 and a2 = 0 on
CIFAR-100 (the default) and 10 and 10 on ImageNet-R (`shrink=10 shrink_others=10`); their scripts for ResNets first take
square roots of features, impossible for CLIP's negative ones, and shrink twice (`shrinks=2`).

`covariance=common` is the form with one S, of each task's images about the mean of the task and not of the class, as in
the code: S <- (a S + b S_task) / (a + b), with a and b classes before and in the task. A class that recurs has the mean
of all its images and, as in the code, S_k <- (S_k + S_new) / 2 (`again=average`), which depends on the order;
`again=pooled` is the covariance of all images together. A class of one image has the mean of the other classes'
covariances, or I if there is none (ours). A label that was never trained scores -inf.

    Parameters  none
    State       a sum of features (fp64), a count and a d x d matrix (fp32) per class: 105 MB per hundred at d = 512
    Passes      1 of the image tower in all; in the first task those of adapt too
    Exemplars   none

Paper: https://arxiv.org/abs/2309.14062
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.methods.base.method import Batch, Classifier, Clip, Images, Prompts, Task
from everclip.methods.shared.gaussian import Gaussian, correlation, covariance, inverse, spread
from everclip.methods.shared.statistics import Statistics, StatisticsConfig
from everclip.methods.shared.weights import Kept


class Fecam(Kept, Statistics):
    """Class means with a covariance each."""

    class Config(StatisticsConfig):
        search: ClassVar = {"shrink": (0.1, 1.0, 10.0), "shrink_others": (0.0, 1.0, 10.0)}

        covariance: Literal["class", "common"] = Field(
            default="class", description="one covariance per class, or one for all"
        )
        shrink: float = Field(default=1.0, ge=0, description="a1: weight of the mean variance")
        shrink_others: float = Field(default=0.0, ge=0, description="a2: weight of the mean covariance")
        shrinks: int = Field(default=1, ge=0, le=2, description="number of times a covariance is shrunk")
        again: Literal["average", "pooled"] = Field(
            default="average",
            description="covariance of a class that recurs: mean of old and new, or over all images",
        )

    config: Config
    second_moments = False
    cosines = False

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.common = config.covariance == "common"

    def lift(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        return normalize(features, dim=1)

    def absorb(self, clip: Clip, task: Task, new: Iterable[Batch]) -> None:
        parts = [(self.rows(features), labels) for features, labels in self.extracted(clip, new)]
        rows, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        if self.common:
            known, met = int((self.counts > 0).sum()), len(labels.unique())
            self.keep("common", covariance(rows), known / (known + met))
        for label in () if self.common else labels.unique().tolist():
            self.include(label, rows[labels == label])
        self.add(rows, labels)

    def include(self, label: int, rows: Float64[Tensor, "n d"]) -> None:
        """Update the covariance of a class with the images of a task, which are not in its sum yet."""
        before, new = int(self.counts[label]), len(rows)
        if self.config.again == "average" or before == 0:
            if new > 1:
                self.keep(str(label), covariance(rows), 0.5)
            return
        mean, width = self.sums[label] / before, rows.shape[1]
        old = self.kept.get(str(label), rows.new_zeros(width, width)).to(rows.device).double()
        both = Gaussian(before, mean, old).with_rows_of(Gaussian.of(rows))
        self.kept[str(label)] = both.sigma.float()

    def keep(self, name: str, sigma: Float64[Tensor, "d d"], share: float) -> None:
        """Mix a covariance with the one kept so far, if any, whose weight is ``share``."""
        old = self.kept.get(name)
        mixed = sigma if old is None else share * old.to(sigma.device) + (1 - share) * sigma
        self.kept[name] = mixed.float()

    def precision(self, sigma: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
        """Return pinv of the correlations of a covariance, shrunk as the options say."""
        for _ in range(self.config.shrinks):
            sigma = spread(sigma, self.config.shrink, self.config.shrink_others)
        return inverse(correlation(sigma))

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        means = self.summed.means[[*labels]]
        identity = torch.eye(means.shape[1], dtype=torch.float64, device=means.device)
        known = {name: sigma.to(means.device).double() for name, sigma in self.kept.items()}
        shared = self.precision(torch.stack([*known.values()]).mean(0) if known else identity)
        own = (known.get(str(label)) for label in labels)
        matrices = [shared if sigma is None else self.precision(sigma) for sigma in own]
        return Mahalanobis(lambda images: self.query(clip, images), means, matrices, self.silence([*labels]))


class Mahalanobis(Classifier):
    """Return ``-(x - m_k)' P_k (x - m_k) + b_k``, twice a Gaussian's logarithm but for its constant."""

    to_logits = 0.5

    def __init__(self, encode: Any, means: Tensor, matrices: list[Tensor], bias: Tensor) -> None:
        super().__init__()
        self.encode, self.means, self.matrices, self.bias = encode, means, matrices, bias

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        rows = self.encode(images)
        pairs = zip(self.means, self.matrices, strict=True)
        distances = [(((rows - mean) @ matrix) * (rows - mean)).sum(1) for mean, matrix in pairs]
        return self.bias - torch.stack(distances, 1)
