"""Keep class means of frozen features, as prototypes or to sample around; learn a tower's projection with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from everclip.methods.base.method import Batch, Clip, Images, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.frozen import Frozen
from everclip.models.pooled import projection_of

READ = Phase("prototypes", 1, data="new")
"""A phase that sees each new image once and trains nothing."""


class ClassMeans(Frozen):
    """Base of methods with the mean of the features of each class, over all tasks that had it."""

    def build(self, clip: Clip, width: int) -> None:
        classes = len(self.prompts.names)
        self.kept["sums"] = torch.zeros(classes, width, device=clip.device)
        self.kept["counts"] = torch.zeros(classes, device=clip.device)

    def include(self, rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], prefix: str = "") -> None:
        """Add images."""
        targets = one_hot(labels.to(rows.device), len(self.kept["counts"])).to(rows)
        self.kept[f"{prefix}sums"] += targets.T @ rows
        self.kept[f"{prefix}counts"] += targets.sum(0)

    def replay(self, draw: torch.Generator, noise: float) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
        """Return the means of all old classes with normal noise, and their positions in ``seen``."""
        old = self.seen[: self.old]
        means = self.kept["sums"][old] / self.kept["counts"][old].clamp(min=1)[:, None]
        places = (self.kept["counts"][old] > 0).nonzero()[:, 0]
        means = means[places]
        return means + noise * torch.randn(means.shape, generator=draw, device=means.device), places


class Prototypes(ClassMeans):
    """Base of methods that need the means before a task trains: they read in a phase, and once more after it."""

    def widen(self, clip: Clip, task: Task) -> None:
        for name in ("sums", "counts"):  # of augmented views, until the task ends
            self.kept[f"new {name}"] = torch.zeros_like(self.kept[name])

    def read(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Add a batch of the phase ``READ``; return its loss, which is 0."""
        with torch.no_grad():
            self.include(self.summarised(clip, batch.images), batch.labels, "new ")
        return {"none": torch.zeros((), device=clip.device)}

    def summarised(self, clip: Clip, images: Images) -> Float[Tensor, "n d"]:
        """Return the features whose class means are kept: unit-length ones."""
        return normalize(self.raw(clip, images), dim=1)

    def prototypes(self) -> Float[Tensor, "c d"]:
        """Return the means of the classes seen; 0 for one without an image yet."""
        sums, counts = (self.kept[name] + self.kept[f"new {name}"] for name in ("sums", "counts"))
        return (sums / counts.clamp(min=1)[:, None])[self.seen]

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Compute the means anew from plain images."""
        for _ in self.reread(clip, new):
            pass

    def reread(self, clip: Clip, new: Iterable[Batch]) -> Iterator[tuple[Batch, Float[Tensor, "b d"]]]:
        """Compute the means anew from plain images; yield each batch and its features."""
        for name in ("sums", "counts"):
            self.kept[f"new {name}"].zero_()
        for batch in new:
            rows = self.summarised(clip, batch.images)
            self.include(rows, batch.labels)
            yield batch, rows


class Projected(Prototypes):
    """Base of methods with class means and a projection ``weight``, at first the tower's, whose bias stays."""

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(reads="pooled", centers=False)
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.first, self.bias = torch.zeros(1, 1), torch.zeros(1)

    def build(self, clip: Clip, width: int) -> None:
        self.weight = nn.Parameter(projection_of(tower(clip))[0])
        super().build(clip, self.weight.shape[1])

    def widen(self, clip: Clip, task: Task) -> None:
        super().widen(clip, task)
        self.first, self.bias = projection_of(tower(clip))

    def summarised(self, clip: Clip, images: Images) -> Float[Tensor, "n w"]:
        return clip.whole(self.pooled(clip, images))

    def project(self, rows: Float[Tensor, "b w"], weight: Float[Tensor, "d w"]) -> Float[Tensor, "b d"]:
        """Return unit-length projections."""
        return normalize(rows @ weight.T + self.bias, dim=1)


def tower(clip: Clip) -> nn.Module:
    """Return the image tower, which may be kept apart from the model."""
    return clip.model.visual if clip.trunk is None or not clip.trunk.vectors else clip.trunk.lower


def moments(rows: Float64[Tensor, "n w"], mean: bool) -> Float64[Tensor, "w w"]:
    """Return X'X, or X'X / (n - 1) + 1e-4 I."""
    if not mean:
        return rows.T @ rows
    return rows.T @ rows / max(1, len(rows) - 1) + 1e-4 * torch.eye(rows.shape[1]).to(rows)


def free(found: Float64[Tensor, "w w"], count: int) -> Float64[Tensor, "w k"]:
    """Return the directions in which moments are smallest, as columns."""
    return torch.linalg.eigh(found).eigenvectors[:, :count]
