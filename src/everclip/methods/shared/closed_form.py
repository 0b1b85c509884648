"""Solve classifiers in closed form from sums over images: G = sum x x', Q = sum x y', n_k. All in fp64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from everclip.errors import NonFinite


def ridge(
    gram: Float64[Tensor, "m m"],
    cross: Float64[Tensor, "m c"],
    lam: float,
    prior: Float64[Tensor, "m c"] | None = None,
) -> Float64[Tensor, "m c"]:
    """Return W = (G + lam I)^-1 (Q + lam prior): the minimum of ``|X W - Y|^2 + lam |W - prior|^2``.

    lam is raised to the least that a Cholesky factor in fp64 needs, about 1e-16 m times the trace. Raises NonFinite
    where G is not finite.
    """
    demand_finite(gram)
    trace = gram.trace().item()
    real = torch.finfo(torch.float64)
    lam = max(lam, len(gram) * real.eps * trace, real.tiny)
    _, factor = regular(gram, lam)
    return torch.cholesky_solve(cross if prior is None else cross + lam * prior, factor)


def regular(
    gram: Float64[Tensor, "m m"], lam: float
) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, "m m"]]:
    """Return G + lam I, positive definite for lam > 0, and its Cholesky factor: without the negative eigenvalues that
    images leave in G which were taken out of it and were not in it exactly."""
    made = gram.clone()
    made.diagonal().add_(lam)
    factor, failed = torch.linalg.cholesky_ex(made)
    if failed:
        values, vectors = torch.linalg.eigh(gram)
        made = (vectors * (values.clamp(min=0) + lam)) @ vectors.T
        factor = torch.linalg.cholesky(made)
    return made, factor


def demand_finite(gram: Float64[Tensor, "m m"]) -> None:
    """Refuse sums of features that are nan or inf. Raises NonFinite."""
    if not gram.isfinite().all():
        raise NonFinite(
            "image features are not finite, so nothing can be solved from them: the model's weights are"
            " damaged; use another copy"
        )


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Ridge regression at every lam at once: a row x is predicted as x B diag(1 / (l + lam)) R."""

    basis: Float64[Tensor, "m r"]
    values: Float64[Tensor, " r"]
    targets: Float64[Tensor, "r c"]

    @classmethod
    def of_gram(cls, gram: Float64[Tensor, "m m"], cross: Float64[Tensor, "m c"]) -> Spectrum:
        """Solve from G = V diag(l) V': B = V, R = V' Q. Raises NonFinite where G is not finite."""
        demand_finite(gram)
        values, vectors = torch.linalg.eigh(gram)
        return cls(vectors, values.clamp(min=0), vectors.T @ cross)

    @classmethod
    def of_rows(cls, rows: Float64[Tensor, "n m"], targets: Float64[Tensor, "n c"]) -> Spectrum:
        """Solve from X X' = U diag(l) U', cheaper with fewer rows than features: B = X' U, R = U' Y.

        Raises NonFinite where X X' is not finite.
        """
        inner = rows @ rows.T
        demand_finite(inner)
        values, vectors = torch.linalg.eigh(inner)
        return cls(rows.T @ vectors, values.clamp(min=0), vectors.T @ targets)

    def predictions(self, rows: Float64[Tensor, "n m"], lams: Sequence[float]) -> Iterator[Tensor]:
        """Yield predictions for other rows, ``[n, c]``, at each of ``lams``."""
        seen = rows @ self.basis
        return (seen @ (self.targets / (self.values + lam)[:, None]) for lam in lams)

    def errors(
        self, rows: Float64[Tensor, "n m"], targets: Float64[Tensor, "n c"], lams: Sequence[float]
    ) -> Float64[Tensor, " l"]:
        """Return the squared error on other rows at each of ``lams``, summed."""
        predicted = self.predictions(rows, lams)
        return torch.stack([(guess - targets).square().sum() for guess in predicted])


LAMS = tuple(10 ** (step / 8) for step in range(-48, 17))
"""The lams that ``best_lam`` tries, as multiples of the mean of G's diagonal: 1e-6 to 100, eight a decade."""

FREE = 0.1
"""Least fraction of the images' degrees of freedom that ``best_lam`` leaves."""
FEW, SPARE = 4, 8
"""Images are few where G has ``FEW`` times as many columns, ``SPARE`` more images counted in."""


def best_lam(
    gram: Float64[Tensor, "m m"],
    cross: Float64[Tensor, "m c"],
    square: float,
    count: int,
    prior: Float64[Tensor, "m c"] | None = None,
) -> float:
    """Return the lam of ``ridge`` with the least score in generalised cross-validation (Golub, Heath and Wahba 1979).

        score(lam) = |Y - X W|^2 / (n - tr H)^2,    H = X (G + lam I)^-1 X',  the same for all classes

    With fewer images than features the score is sometimes least where W fits every image and both its numerator and its
    denominator are nearly 0, so a lam that leaves less than ``FREE`` of the n degrees of freedom is not chosen.

    Exact from the sums, since |Y - X W|^2 and tr H follow from the eigenvalues l_i of G and R = V' Q. The terms are
    written so that nothing cancels: of |R_i|^2 / l_i, direction i leaves the fraction (lam / (l_i + lam))^2. With far
    fewer images than features, the eigenvalues are those of G within the directions that the images span.

    Args:
        square: |Y|^2.
        count: n, the rows of X.

    Raises NonFinite where G is not finite.
    """
    demand_finite(gram)
    if prior is not None:  # what is left to learn, Y - X prior
        square += ((prior * (gram @ prior)).sum() - 2 * (prior * cross).sum()).item()
        cross = cross - gram @ prior
    unit, rounding = gram.diagonal().mean().item(), len(gram) * torch.finfo(torch.float64).eps
    basis = spanned(gram, count)
    if basis is not None:
        gram, cross = basis.T @ gram @ basis, basis.T @ cross
    values, vectors = torch.linalg.eigh(gram)
    kept = values > rounding * values[-1]
    spread = values[kept]
    explained = (vectors[:, kept].T @ cross).square().sum(1) / spread
    return least(spread, explained, unit, square, count)


def spanned(gram: Float64[Tensor, "m m"], count: int) -> Float64[Tensor, "m r"] | None:
    """Return an orthonormal basis of the directions that ``count`` images span, far fewer than G has columns.

    It is that of the product of G and a few more random columns than images (Halko, Martinsson and Tropp 2011). None
    where eigenvalues of G itself take no longer, or where G has more outside of it than a thousandth of the least lam
    that ``best_lam`` tries: sums that were estimated are not those of so few images.
    """
    columns = count + SPARE
    if FEW * columns > len(gram):
        return None
    drawn = torch.randn(len(gram), columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(gram @ drawn.to(gram.device)).Q
    outside = gram.trace() - ((gram @ basis) * basis).sum()
    return basis if outside <= 1e-3 * LAMS[0] * gram.diagonal().mean() else None


def least(
    spread: Float64[Tensor, " r"], explained: Float64[Tensor, " r"], unit: float, square: float, count: int
) -> float:
    """Return what ``best_lam`` does, from the eigenvalues l_i > 0 of G, or of X X', which are the same.

    Args:
        explained: |R_i|^2 / l_i, or the rows of U' Y squared and summed, with the eigenvectors U of X X'.
        unit: mean of G's diagonal.
    """
    rest = square - explained.sum().item()
    rest = rest if rest > 1e-10 * square else 0.0  # with as many directions as rows, only rounding is left
    lams = unit * torch.tensor(LAMS, dtype=torch.float64, device=spread.device)
    left = lams[:, None] / (spread + lams[:, None])
    error = rest + (left.square() * explained).sum(1)
    free = max(0, count - len(spread)) + left.sum(1)
    scores = (error / free.square()).where(free >= FREE * count, torch.inf)
    # with few images and many features even the largest lam may leave less
    scores[-1] = error[-1] / free[-1].square()
    return lams[int(scores.argmin())].item()


def text_scale(
    gram: Float64[Tensor, "m m"], cross: Float64[Tensor, "m c"], text: Float64[Tensor, "m c"]
) -> float:
    """Return kappa = <Q, E> / <E, G E>, at which text embeddings as a classifier come nearest to Y."""
    return ((cross * text).sum() / (text * (gram @ text)).sum()).item()


def within_class(
    gram: Float64[Tensor, "m m"], sums: Float64[Tensor, "c m"], counts: Int64[Tensor, " c"]
) -> Float64[Tensor, "m m"]:
    """Return within-class scatter G - sum_k Q_k Q_k' / n_k, over the classes that have images."""
    met = counts > 0
    return gram - (sums[met] / counts[met, None]).T @ sums[met]


def oas(covariance: Float64[Tensor, "m m"], count: int) -> float:
    """Return the weight of the mean variance in oracle-approximating shrinkage (Chen et al. 2010, arXiv 0907.4698).

    As scikit-learn computes it, without terms of 2 / m, for a covariance estimated from ``count`` images.
    """
    mean_square = covariance.square().mean().item()
    square_mean = covariance.diagonal().mean().item() ** 2
    spread = (count + 1) * (mean_square - square_mean / len(covariance))
    return min(1.0, (mean_square + square_mean) / spread) if spread > 0 else 1.0


def shrunk(covariance: Float64[Tensor, "m m"], share: float, target: float) -> Float64[Tensor, "m m"]:
    """Return (1 - share) Sigma + share target I."""
    result = (1 - share) * covariance
    result.diagonal().add_(share * target)
    return result


def discriminants(
    covariance: Float64[Tensor, "m m"], means: Float64[Tensor, "c m"]
) -> tuple[Float[Tensor, "m c"], Float[Tensor, " c"]]:
    """Return W = Sigma^-1 mu and b = -1/2 mu' Sigma^-1 mu of classes with a common covariance."""
    weight = ridge(covariance, means.T.contiguous(), 0.0)
    return weight, -0.5 * (means.T * weight).sum(0)
