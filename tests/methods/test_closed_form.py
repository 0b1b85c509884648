"""Solutions from sums, against golden numbers, naive solutions and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.covariance import oas as sklearn_oas
from torch import Tensor
from torch.testing import assert_close

from everclip.errors import NonFinite
from everclip.methods.shared import closed_form as closed
from tests.methods.closed import near, random

X = torch.tensor([[1, 0], [0.8, 0.2], [0, 1], [0.1, 0.9], [0.7, 0.7], [0.6, 0.8]], dtype=torch.float64)
Y = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 2, 2]]
COUNTS = torch.tensor([2, 2, 2])
PRIOR = torch.tensor([[1, 0, 0.7], [0, 1, 0.7]], dtype=torch.float64)


def test_ridge_golden() -> None:
    near(X.T @ X, [[2.5, 1.22], [1.22, 2.98]])
    weight = closed.ridge(X.T @ X, X.T @ Y, 0.1)
    near(weight, [[0.81293331, -0.30830112, 0.33345604], [-0.25707099, 0.73900239, 0.35492975]])
    near(torch.tensor([0.5, 0.6], dtype=torch.float64) @ weight, [0.25222406, 0.28925087, 0.37968587])
    near(
        closed.ridge(X.T @ X, torch.eye(2).double(), 0.1),
        [[0.47242162, -0.18712804], [-0.18712804, 0.39879747]],
    )


def test_the_recursion_of_acil_gives_the_same() -> None:
    """R <- R - R X' (I + X R X')^-1 X R,  W <- W + R X' (Y - X W), block after block."""
    rows, targets = random(30, 6), random(30, 4, seed=1)
    inverse, weight = torch.eye(6).double() / 0.1, torch.zeros(6, 4).double()
    for part in torch.arange(30).split(7):
        x, y = rows[part], targets[part]
        inner = torch.linalg.inv(torch.eye(len(part)).double() + x @ inverse @ x.T)
        inverse = inverse - inverse @ x.T @ inner @ x @ inverse
        weight = weight + inverse @ x.T @ (y - x @ weight)
    assert_close(closed.ridge(rows.T @ rows, rows.T @ targets, 0.1), weight, atol=1e-10, rtol=0)


@pytest.mark.parametrize("rank", [0, 3])
def test_any_lam_can_be_solved(rank: int) -> None:
    rows = random(rank, 20)
    assert closed.ridge(rows.T @ rows, rows.T @ random(rank, 2), 1e-300).isfinite().all()


@pytest.mark.parametrize("form", ["gram", "rows"])
def test_errors_at_every_lam_golden(form: str) -> None:
    x, y = X[[0, 2, 4]], Y[[0, 2, 4]]
    by_gram = closed.Spectrum.of_gram(x.T @ x, x.T @ y)
    spectrum = by_gram if form == "gram" else closed.Spectrum.of_rows(x, y)
    errors = spectrum.errors(X[[1, 3, 5]], Y[[1, 3, 5]], [1e-4, 1e-2, 0.1, 1, 10])
    expected = [0.1244484449, 0.1248489537, 0.1288151315, 0.1714008378, 0.2859766503]
    assert errors.tolist() == pytest.approx([9 * error for error in expected], abs=1e-9)


@pytest.mark.parametrize("count", [5, 40])
def test_both_spectra_are_the_solutions(count: int) -> None:
    """With fewer and with more rows than features."""
    fit, held, targets = random(count, 12), random(9, 12, seed=1), random(count + 9, 3, seed=2)
    lams = [1e-3, 1.0, 1e3]
    expected = [
        (held @ closed.ridge(fit.T @ fit, fit.T @ targets[:count], lam) - targets[count:]).square().sum()
        for lam in lams
    ]
    for spectrum in (
        closed.Spectrum.of_gram(fit.T @ fit, fit.T @ targets[:count]),
        closed.Spectrum.of_rows(fit, targets[:count]),
    ):
        errors = spectrum.errors(held, targets[count:], lams)
        assert_close(errors, torch.stack(expected), atol=1e-9, rtol=1e-9)


def test_prior_golden() -> None:
    gram, cross = X.T @ X, X.T @ Y
    text = torch.tensor([[1, 0, 0.6], [0, 1, 0.8]], dtype=torch.float64)
    assert closed.text_scale(gram, cross, text) == pytest.approx(0.6005244016, abs=1e-10)
    weight = closed.ridge(gram, cross, 0.1, PRIOR)
    near(weight, [[0.86017547, -0.32701393, 0.35342659], [-0.27578379, 0.77888214, 0.36974661]])
    near(torch.tensor([0.5, 0.6], dtype=torch.float64) @ weight, [0.26461746, 0.30382232, 0.39856126])
    nothing = torch.zeros_like(cross)
    near(closed.ridge(torch.zeros_like(gram), nothing, 0.1, PRIOR), PRIOR.tolist())
    never = PRIOR - closed.ridge(gram, gram, 0.1) @ PRIOR
    assert_close(closed.ridge(gram, nothing, 0.1, PRIOR), never, atol=1e-12, rtol=0)


def test_prior_minimises_its_objective() -> None:
    def objective(weight: Tensor) -> float:
        return ((X @ weight - Y).square().sum() + 0.1 * (weight - PRIOR).square().sum()).item()

    weight = closed.ridge(X.T @ X, X.T @ Y, 0.1, PRIOR)
    best = objective(weight)
    assert all(objective(weight + 0.01 * random(2, 3, seed=seed)) > best for seed in range(50))


def test_text_scale_is_the_least_squares_fit() -> None:
    rows, targets, text = random(20, 5), random(20, 3, seed=1), random(5, 3, seed=2)
    kappa = closed.text_scale(rows.T @ rows, rows.T @ targets, text)
    expected = np.linalg.lstsq((rows @ text).reshape(-1, 1), targets.reshape(-1), rcond=None)[0]
    assert kappa == pytest.approx(expected.item(), abs=1e-12)


def test_discriminants_golden() -> None:
    sums = Y.T @ X
    sigma = closed.within_class(X.T @ X, sums, COUNTS) / 6
    near(sigma, [[0.005, -0.005], [-0.005, 0.005]])
    weight, bias = closed.discriminants(closed.shrunk(sigma, 0.1, 1.0), sums / 2)
    near(weight, [[8.66972477, 0.87155963, 6.5412844], [1.33027523, 9.12844037, 7.4587156]])
    near(bias, [-3.96788991, -4.35779817, -4.92293578])
    near(torch.tensor([0.5, 0.6], dtype=torch.float64) @ weight + bias, [1.16513761, 1.55504587, 2.82293578])


@pytest.mark.parametrize(("count", "width"), [(8, 20), (200, 6)])
def test_oas_is_scikit_learns(count: int, width: int) -> None:
    rows = random(count, width) * torch.arange(1, width + 1)
    covariance = rows.T @ rows / count
    expected, share = sklearn_oas(rows.numpy(), assume_centered=True)
    assert closed.oas(covariance, count) == pytest.approx(share, abs=1e-12)
    shrunk = closed.shrunk(covariance, share, covariance.diagonal().mean().item())
    assert_close(shrunk, torch.from_numpy(expected), atol=1e-10, rtol=0)
    assert closed.oas(torch.zeros(3, 3).double(), 5) == 1


@pytest.mark.parametrize(
    "solve",
    [
        closed.Spectrum.of_rows,
        lambda x, y: closed.Spectrum.of_gram(x.T @ x, x.T @ y),
        lambda x, y: closed.best_lam(x.T @ x, x.T @ y, 1.0, len(x)),
        lambda x, y: closed.ridge(x.T @ x, x.T @ y, 1.0),
    ],
    ids=["of_rows", "of_gram", "best_lam", "ridge"],
)
def test_features_that_are_not_finite_are_refused(solve: Callable[[Tensor, Tensor], object]) -> None:
    rows = random(4, 3)
    rows[1, 2] = torch.nan
    with pytest.raises(NonFinite, match=r"^image features are not finite"):
        solve(rows, random(4, 2))
