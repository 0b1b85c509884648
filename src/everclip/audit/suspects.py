"""Rank labels by how little the other pictures agree with them: leave-one-out scores of ridge regression.

With rows x_i of features, one-hot labels y_i and W = (X'X + lam I)^-1 X'Y, what a classifier fitted to all pictures but
one says of that one follows from the fit to all of them:

    h_i = x_i' (X'X + lam I)^-1 x_i            its share in its own prediction
    s_i = y_i - (y_i - W'x_i) / (1 - h_i)      its scores had it been left out
    doubt_i = max_{k != y_i} s_ik - s_iy_i     above 0: another class is ahead

lam is that of generalised cross-validation. The hat-matrix identity is Allen's PRESS (1974, doi
10.1080/00401706.1974.10489157); ranking labels by what a model that has not seen them says is the first step of
confident learning (Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from everclip.methods.shared.closed_form import best_lam, regular

CHUNK = 4096
"""Number of rows that are in fp64 at once."""
LEAST_FREE = 1e-9
"""Below it 1 - h is rounding error: the picture alone decides its own prediction."""


class Doubts(NamedTuple):
    """How far another class is ahead of each picture's own, and which class that is."""

    doubt: Float64[Tensor, " n"]
    other: Int64[Tensor, " n"]


def doubts(features: Float32[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int) -> Doubts:
    """Return the leave-one-out scores of every picture, from one solution of ridge regression on all of them.

    Args:
        classes: number of classes, at least two; labels are below it.
    """
    mean = features.double().mean(0)
    width = features.shape[1] + 1
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, classes, dtype=torch.float64)
    for rows, own in _chunks(features, labels, mean):
        gram.addmm_(rows.T, rows)
        cross.addmm_(rows.T, one_hot(own, classes).double())
    lam = max(best_lam(gram, cross, float(len(labels)), len(labels)), torch.finfo(torch.float64).tiny)
    _, factor = regular(gram, lam)
    weight = torch.cholesky_solve(cross, factor)
    doubt, other = [], []
    for rows, own in _chunks(features, labels, mean):
        share = (rows * torch.cholesky_solve(rows.T.contiguous(), factor).T).sum(1)
        truth = one_hot(own, classes).double()
        scores = truth - (truth - rows @ weight) / (1 - share).clamp(min=LEAST_FREE)[:, None]
        mine = scores.gather(1, own[:, None])[:, 0]
        best = scores.scatter(1, own[:, None], -torch.inf).max(1)
        doubt.append(best.values - mine)
        other.append(best.indices)
    return Doubts(torch.cat(doubt), torch.cat(other))


def _chunks(features: Float32[Tensor, "n d"], labels: Int64[Tensor, " n"], mean: Float64[Tensor, " d"]):
    """Yield centred rows in fp64, of unit length, with a constant as the last column; and their labels."""
    for rows, own in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        centred = normalize(rows.double() - mean, dim=1)
        yield torch.cat([centred, torch.ones(len(rows), 1, dtype=torch.float64)], 1), own
