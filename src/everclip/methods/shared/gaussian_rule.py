"""Classify by a Gaussian rule with one covariance, from running sums over frozen features (ENGINE, BOFA).

    g_k = mu_k' L x + log(1 / C) - mu_k' L mu_k / 2,    L = d pinv( (n - 1) S + tr(S) I )
    S   = scatter of the images about their class means / (n - 1)

The authors' code makes L of each task's images and mixes: L <- (a L + b L_new) / c + (a b / c^3) D D', with a, b and c
the classes before, in the task and together, and D the difference of the mean class means (``running``). The last term
suits a covariance and not its inverse, so L of all images together is the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

from everclip.methods.shared.sums import Sums


class Rule:
    """Sums of all tasks in a method's ``kept``, and the rule that follows from them.

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
        rows, labels = exact(rows), labels.to(rows.device)
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
    """Return unit-length rows in fp64, which Apple's GPUs have not."""
    return normalize((rows.cpu() if rows.device.type == "mps" else rows).double(), dim=1)


def precision(sums: Sums) -> Float64[Tensor, "d d"]:
    """Return L: d times the pseudo-inverse of the scatter within classes plus its trace / (n - 1) times I.

    Without scatter L is I.
    """
    scatter, count = sums.scatter, int(sums.counts.sum())
    identity = torch.eye(len(scatter), dtype=torch.float64, device=scatter.device)
    if count < 2 or scatter.trace() <= 1e-12 * sums.gram.trace():
        return identity
    regular = scatter + scatter.trace() / (count - 1) * identity
    return len(scatter) * torch.linalg.pinv(regular, hermitian=True)
