"""Classify by cosines in a whitened space, from sums over images; choose the shrinkage from the same sums.

    S = ( G - sum_k n_k mu_k mu_k' ) / n          within classes
    P = (S + s m I)^-1,  m = tr(S) / d,           g = mean over classes of mu_k
    score_k = (x - g)' P (mu_k - g) / |P^1/2 (mu_k - g)|

the cosine of P^1/2 (x - g) and P^1/2 (mu_k - g) times the image's own length, which does not affect the order of
classes.

The strength s is that of ridge regression on the same images. With features and one-hot targets centred, T the total
scatter about the mean of all images and C the cross products,

    W(lam) = (T + lam I)^-1 C

spans the same directions as (S + lam / n I)^-1 (mu_k - g) (Hastie, Buja and Tibshirani 1995, penalised discriminant
analysis, https://doi.org/10.1214/aos/1176324456), and generalised cross-validation (Golub, Heath and Wahba 1979) gives
the best lam from T, C and n alone: no image is held out or looked at again, and the order of tasks does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from everclip.methods.base.method import Classifier, Images
from everclip.methods.shared.closed_form import best_lam, demand_finite, regular, ridge, within_class
from everclip.methods.shared.statistics import Linear

MOST = 100.0
"""s where there is nothing to estimate it from: the head is then that of class means."""
ROUNDING = 1e-12
"""Fraction of the features' mean square below which a variance is taken for 0, and of the means' common length below
which a mean is taken for the centre."""


def within_covariance(
    gram: Float64[Tensor, "m m"], sums: Float64[Tensor, "c m"], counts: Int64[Tensor, " c"]
) -> Float64[Tensor, "m m"]:
    """Return S; exactly 0 where nothing but rounding errors is left, as with one image per class."""
    scatter = within_class(gram, sums, counts)
    alive = scatter.trace() > ROUNDING * gram.trace()
    return scatter * alive / counts.sum()


def strength(
    gram: Float64[Tensor, "m m"], sums: Float64[Tensor, "c m"], counts: Int64[Tensor, " c"]
) -> float:
    """Return s by generalised cross-validation, as a multiple of m; ``MOST`` with one image per class, or one class.

    Raises RunError where G is not finite.
    """
    demand_finite(gram)
    n = counts.sum().double()
    known = counts[counts > 0].double()
    covariance = within_covariance(gram, sums, counts)
    mean_variance = covariance.diagonal().mean().item()
    if len(known) < 2 or mean_variance == 0:
        return MOST
    mean = sums.sum(0) / n
    total = gram - n * torch.outer(mean, mean)
    cross = sums - counts[:, None] * mean
    square = (n - known.square().sum() / n).item()
    # the mean takes a degree of freedom
    lam = best_lam(total, cross.T, square, int(n) - 1)
    return lam / (n.item() * mean_variance)


def whitened(
    covariance: Float64[Tensor, "m m"],
    means: Float64[Tensor, "c m"],
    centre: Float64[Tensor, " m"],
    share: float,
) -> tuple[Float64[Tensor, "m c"], Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """Return weights and biases of classes at s = ``share``, and lengths |P^1/2 (mu_k - g)|; m is 1 where S is 0."""
    lam = share * (covariance.diagonal().mean().item() or 1.0)
    offsets = means - centre
    # a class at the centre has no direction, whichever way rounding points
    offsets = offsets * (offsets.norm(dim=1, keepdim=True) > ROUNDING * means.norm())
    weight = ridge(regular(covariance, lam)[0], offsets.T.contiguous(), 0.0)
    lengths = (offsets.T * weight).sum(0).clamp(min=0).sqrt()
    weight = weight / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    return weight, -(centre @ weight), lengths


class Head(NamedTuple):
    """A linear classifier with columns of labels, whose place ``owner`` has, and what makes its scores logits."""

    weight: Float64[Tensor, "m k"]
    bias: Float64[Tensor, " k"]
    owner: Int64[Tensor, " k"]
    to_logits: float


class Nearest(Linear):
    """The largest score of the columns of each label, of the features that ``encode`` gives."""

    def __init__(self, encode: Callable[[Tensor], Tensor], head: Head, labels: int) -> None:
        super().__init__(encode, head.weight, head.bias)
        self.to_logits = head.to_logits
        self.owner = head.owner.to(head.weight.device)
        self.labels = labels

    def scored(self, rows: Float64[Tensor, "b m"]) -> Float64[Tensor, "b c"]:
        scores = super().scored(rows)
        if len(self.owner) == self.labels:
            return scores
        lowest = scores.new_full((len(scores), self.labels), -torch.inf)
        return lowest.scatter_reduce(1, self.owner.expand(len(scores), -1), scores, "amax")


class Summed(Classifier):
    """The weighted sum of the scores of several classifiers; as logits, their weighted mean."""

    def __init__(self, parts: Mapping[Nearest, float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), list(parts.values())
        self.to_logits = sum(w * part.to_logits for part, w in parts.items()) / sum(self.weights) ** 2

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        parts = zip(self.parts, self.weights, strict=True)
        return torch.stack([weight * part(images) for part, weight in parts]).sum(0)
