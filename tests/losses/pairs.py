"""Pairs made by hand or at random, for the tests of the losses."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

GOLDEN = [[0.30, 0.10, 0.05], [0.12, 0.28, 0.08], [0.02, 0.06, 0.25]]
"""Similarities of three pairs that golden numbers were computed from, rows images."""


def golden() -> Float[Tensor, "3 3"]:
    """These similarities in fp64, taking gradients."""
    return torch.tensor(GOLDEN, dtype=torch.float64, requires_grad=True)


def features(seed: int, b: int, d: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit-length image and caption features that take gradients."""
    random = torch.Generator().manual_seed(seed)
    both = normalize(torch.randn(2, b, d, dtype=dtype, generator=random), dim=-1)
    return both[0].requires_grad_(), both[1].requires_grad_()


def grad(value: Tensor, *inputs: Tensor) -> Tensor:
    """Gradient with respect to all inputs, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, inputs, retain_graph=True)])


def everyone_else(b: int) -> Bool[Tensor, "b b"]:
    """Every other pair."""
    return ~torch.eye(b, dtype=torch.bool)
