"""Describe classes by means and covariances of features, make covariances of few images usable, draw from both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from everclip.methods.base.method import Batch, Clip, MethodConfig, Prompts
from everclip.methods.shared.frozen import Frozen
from everclip.seeding import generator

FLOOR = 1e-4
"""What is added to each variance of a class that is drawn from."""


class Gaussian(NamedTuple):
    """The number of some rows, their mean and their unbiased covariance, which is 0 of one row."""

    number: int
    mean: Float[Tensor, " d"]
    sigma: Float[Tensor, "d d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> Gaussian:
        """Describe at least one row."""
        return cls(len(rows), rows.mean(0), covariance(rows))

    def with_rows_of(self, other: Gaussian) -> Gaussian:
        """Describe the rows of both together."""
        count = self.number + other.number
        step = other.mean - self.mean
        between = self.number * other.number / count * torch.outer(step, step)
        scatter = (self.number - 1) * self.sigma + (other.number - 1) * other.sigma + between
        return Gaussian(count, self.mean + other.number / count * step, scatter / (count - 1))


def covariance(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Return the unbiased covariance of at least two rows; 0 of one row."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / max(1, len(rows) - 1)


def spread(sigma: Float[Tensor, "d d"], diagonal: float = 1.0, others: float = 1.0) -> Float[Tensor, "d d"]:
    """S + a1 V1 I + a2 V2 (11' - I): V1 the mean variance, V2 the mean of the other entries that are not 0.

    FeCAM (https://arxiv.org/abs/2309.14062), equation 7; RAPF's code has it with a1 = a2 = 1.

    Args:
        diagonal, others: a1 and a2.
    """
    identity = torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    off = sigma * (1 - identity)
    mean = off.sum() / (off != 0).sum().clamp(min=1)
    return sigma + diagonal * sigma.diagonal().mean() * identity + others * mean * (1 - identity)


def correlation(sigma: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """S_ij / sqrt(S_ii S_jj); a row without variance has its 1 on the diagonal and 0 elsewhere."""
    variance = sigma.diagonal()
    alive = variance > 0
    scale = torch.where(alive, variance, 1.0).rsqrt() * alive
    found = scale[:, None] * sigma * scale
    found.diagonal().fill_(1.0)
    return found


class Sampled(Frozen):
    """Base of methods on frozen towers that draw features of classes whose images are gone.

    When its task ends, each class in each domain leaves a Gaussian.

    Attributes:
        roots: name -> Cholesky factor of the covariance, of what earlier tasks left; a name is "label.domain".
    """

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.roots: dict[str, Tensor] = {}

    def prepare(self, shrink: bool) -> None:
        """Factor the covariances, shrunk or not, before a task's steps."""
        names = [name.removeprefix("mean") for name in self.kept if name.startswith("mean")]
        self.roots = {name: root(self.kept[f"sigma{name}"], shrink) for name in names}

    def turn(self, batch: Batch, count: int) -> list[str]:
        """Return the names whose turn it is in a step: all in random order, and again in another."""
        names, found = list(self.roots), []
        for turn in range(count * batch.number, count * (batch.number + 1) if names else 0):
            order = generator(batch.seed, "old classes", batch.key[0], turn // len(names))
            found.append(names[order.permutation(len(names))[turn % len(names)]])
        return found

    def sample(self, name: str, count: int, draw: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw features: mean + chol(S) n."""
        factor = self.roots[name]
        noise = torch.randn(count, len(factor), generator=draw, device=factor.device)
        return self.kept[f"mean{name}"] + noise @ factor.T

    def remember(self, clip: Clip, new: Iterable[Batch]) -> None:
        """Describe the images of a task, together with earlier ones of the same class and domain."""
        for (label, domain), rows in self.cells(clip, new, raw=True).items():
            found, name = Gaussian.of(rows), f"{label}.{domain}"
            if f"mean{name}" in self.kept:
                count, mean, sigma = (self.kept[f"{part}{name}"] for part in ("count", "mean", "sigma"))
                found = Gaussian(int(count), mean, sigma).with_rows_of(found)
            self.kept[f"count{name}"] = torch.tensor(found.number, device=rows.device)
            self.kept |= {f"mean{name}": found.mean, f"sigma{name}": found.sigma}


def label_of(name: str) -> int:
    """Return the label in a name."""
    return int(name.partition(".")[0])


def root(sigma: Float[Tensor, "d d"], shrink: bool) -> Float[Tensor, "d d"]:
    """Return the Cholesky factor of S + 1e-4 I, shrunk if asked for, in the type of S."""
    floor = FLOOR * torch.eye(len(sigma), dtype=torch.float64, device=sigma.device)
    found = sigma.double() + floor
    return torch.linalg.cholesky(spread(found) if shrink else found).to(sigma.dtype)
