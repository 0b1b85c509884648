"""Describe classes by Gaussians: make covariances of few images usable, draw from them, classify by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot, softplus

from everclip.methods.base.method import Batch, Clip, MethodConfig, Prompts
from everclip.methods.shared.frozen import Frozen
from everclip.methods.shared.head import columns
from everclip.methods.shared.sums import Sums
from everclip.seeding import generator

FLOOR = 1e-4
"""Added to each variance of a class that features are drawn from."""


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
    """Return the unbiased covariance of at least two rows; 0 for one row."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / max(1, len(rows) - 1)


def spread(sigma: Float[Tensor, "d d"], diagonal: float = 1.0, others: float = 1.0) -> Float[Tensor, "d d"]:
    """Return S + a1 V1 I + a2 V2 (11' - I), with a1 = ``diagonal`` and a2 = ``others``.

    V1 is the mean variance, V2 the mean of the other entries that are not 0: FeCAM (https://arxiv.org/abs/2309.14062),
    equation 7; RAPF's code has it with a1 = a2 = 1.
    """
    identity = torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    off = sigma * (1 - identity)
    mean = off.sum() / (off != 0).sum().clamp(min=1)
    return sigma + diagonal * sigma.diagonal().mean() * identity + others * mean * (1 - identity)


def correlation(sigma: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return S_ij / sqrt(S_ii S_jj); a row without variance has its 1 on the diagonal and 0 elsewhere."""
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
        roots: name -> Cholesky factor of a covariance that an earlier task left; a name is "label.domain".
    """

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(centers=False)
        self.roots: dict[str, Tensor] = {}

    def prepare(self, shrink: bool) -> None:
        """Factor the covariances, shrunk or not, before a task's steps."""
        self.roots = {name: root(sigma, shrink) for name, sigma in self.part("sigma").items()}

    def turn(self, batch: Batch, count: int) -> list[str]:
        """Return the names whose turn it is in a step: all in random order, then all in another."""
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
    found = sigma.cpu().double()  # fp64 is not on every device
    found = found + FLOOR * torch.eye(len(found), dtype=found.dtype)
    return torch.linalg.cholesky(spread(found) if shrink else found).to(sigma)


class Rule:
    """A Gaussian rule with one covariance, from sums over the images of all tasks (ENGINE, BOFA).

        g_k = mu_k' L x + log(1 / C) - mu_k' L mu_k / 2,    L = d pinv( (n - 1) S + tr(S) I )
        S   = scatter of the images about their class means / (n - 1)

    The authors' code mixes an L of each task (``running``): L <- (a L + b L_new) / c + (a b / c^3) D D', with a, b, c
    the classes before, in the task and together, and D the difference of the mean class means. The last term suits a
    covariance and not its inverse, so L of all images together is the default.

    Args:
        kept: tensors by name, to which it adds those that begin with "rule".
    """

    def __init__(self, kept: dict[str, Tensor]) -> None:
        self.kept = kept

    @property
    def sums(self) -> Sums:
        """Return the sums over unit-length features of all images."""
        return Sums(*(self.kept[f"rule {name}"] for name in ("gram", "sums", "counts")))

    def add(
        self, classes: int, rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], running: bool = False
    ) -> None:
        """Add the images of a task; with ``running`` the mixed L as well."""
        rows = exact(rows)
        labels = labels.to(rows.device)
        task = Sums.empty(classes, rows.shape[1], device=rows.device)
        task.add_(rows, labels)
        if "rule gram" not in self.kept:
            self._keep(task, precision(task) if running else None)
            return
        before = self.sums
        mixed = None
        if running:
            a, b = (int(part.learned.sum()) for part in (before, task))
            step = before.means[before.learned].mean(0) - task.means[task.learned].mean(0)
            share = (a * self.kept["rule mixed"] + b * precision(task)) / (a + b)
            mixed = share + a * b / (a + b) ** 3 * torch.outer(step, step)
        before.add_(rows, labels)
        self._keep(before, mixed)

    def _keep(self, sums: Sums, mixed: Tensor | None) -> None:
        self.kept |= {f"rule {name}": getattr(sums, name) for name in ("gram", "sums", "counts")}
        if mixed is not None:
            self.kept["rule mixed"] = mixed

    def scorer(self, labels: Iterable[int]) -> Callable[[Float[Tensor, "b d"]], Float64[Tensor, "b c"]]:
        """Return the map from features of images to g of classes that have been learned."""
        sums, wanted = self.sums, list(labels)
        mixed = self.kept.get("rule mixed")
        weight = precision(sums) if mixed is None else mixed
        centres = sums.means[wanted]
        bias = -math.log(len(wanted)) - 0.5 * (centres @ weight * centres).sum(1)
        return lambda rows: exact(rows) @ weight @ centres.T + bias


def exact(rows: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Return unit-length rows in fp64, which Apple's GPUs lack."""
    return normalize((rows.cpu() if rows.device.type == "mps" else rows).double(), dim=1)


def precision(sums: Sums) -> Float64[Tensor, "d d"]:
    """Return L: d pinv(scatter within classes + its trace / (n - 1) I); I where there is no scatter."""
    scatter, count = sums.scatter, int(sums.counts.sum())
    identity = torch.eye(len(scatter), dtype=torch.float64, device=scatter.device)
    if count < 2 or scatter.trace() <= 1e-12 * sums.gram.trace():
        return identity
    regular = scatter + scatter.trace() / (count - 1) * identity
    return len(scatter) * inverse(regular)


class Heads(nn.Module):
    """A normal distribution around each class embedding, by linear layers of its task for mu and sigma (CLAP4CLIP)."""

    def __init__(self) -> None:
        super().__init__()
        self.means, self.deviations = nn.ModuleList(), nn.ModuleList()
        self.tasks: list[int] = []
        self.labels: list[int] = []

    def grow(
        self, labels: Sequence[int], means: Float[Tensor, "c d"], variances: Float[Tensor, "c d"]
    ) -> None:
        """Add a task's layers, which start at M'M / d and D'D / d."""
        self.tasks += [len(self.means)] * len(labels)
        self.labels += labels
        for layers, values in ((self.means, means), (self.deviations, variances)):
            layer = nn.Linear(values.shape[1], values.shape[1]).to(values)
            with torch.no_grad():
                layer.weight.copy_(values.T @ values / values.shape[1])
            layers.append(layer)

    def newest(self) -> nn.ModuleList:
        """Return the layers of the last task."""
        return nn.ModuleList([self.means[-1], self.deviations[-1]])

    def forward(self, u: Float[Tensor, "n h d"]) -> tuple[Float[Tensor, "n h d"], Float[Tensor, "n h d"]]:
        """Return mu and sigma of each head."""
        found = []
        for layers in (self.means, self.deviations):
            parts = [layers[task](u[:, place]) for place, task in enumerate(self.tasks)]
            found.append(torch.stack(parts, 1))
        return found[0], deviation(found[1])

    def pooled(self, seen: Sequence[int], scores: Float[Tensor, "*b h"]) -> Float[Tensor, "*b c"]:
        """Return the mean over the heads of each class seen."""
        owner = columns(seen, torch.tensor(self.labels)).to(scores.device)
        share = one_hot(owner, len(seen)).to(scores)
        return scores @ (share / share.sum(0))


def deviation(values: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Return 0.999 softplus(x) + 0.001."""
    return 0.999 * softplus(values) + 0.001


def divergence(mu: Float[Tensor, "h d"], sigma: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
    """Return the sum over dimensions of the mean over classes of KL( N(mu, sigma) || N(0, 1) )."""
    return (0.5 * (sigma.square() + mu.square() - 1) - sigma.log()).mean(0).sum()


def apart(texts: Float[Tensor, "h d"], drawn: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
    """Return CE( Q, diagonal ) of the means over templates and draws."""
    return cross_entropy(texts @ drawn.T, torch.arange(len(texts), device=texts.device))


def inverse(matrix: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Return pinv of a symmetric matrix; by Cholesky, five times faster, where it is clearly positive definite."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    pivots = root.diagonal().square()
    if failed or pivots.min() < 1e-8 * pivots.max():
        return torch.linalg.pinv(matrix, hermitian=True)
    return torch.cholesky_inverse(root)
