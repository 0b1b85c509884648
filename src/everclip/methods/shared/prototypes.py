"""Keep class means of frozen features that a task needs before it trains: read in a phase, and once more after it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from everclip.methods.base.method import Batch, Clip, Images, Phase, Task
from everclip.methods.shared.frozen import Frozen

READ = Phase("prototypes", 1, data="new")
"""Sees each new image once; nothing learns in it."""


class Prototypes(Frozen):
    """Base of methods with the mean of the features of each class, over all tasks that had it."""

    def build(self, clip: Clip, width: int) -> None:
        classes = len(self.prompts.names)
        self.kept["sums"] = torch.zeros(classes, width, device=clip.device)
        self.kept["counts"] = torch.zeros(classes, device=clip.device)

    def widen(self, clip: Clip, task: Task) -> None:
        for name in ("sums", "counts"):  # of augmented views, until the task ends
            self.kept[f"new {name}"] = torch.zeros_like(self.kept[name])

    def read(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Add a batch of the phase ``READ``; return its loss, which is 0."""
        self._add(clip, batch, "new ")
        return {"none": torch.zeros((), device=clip.device)}

    def summarised(self, clip: Clip, images: Images) -> Float[Tensor, "n d"]:
        """Return the features whose class means are kept: unit-length ones."""
        return normalize(self.raw(clip, images), dim=1)

    @torch.no_grad()
    def _add(self, clip: Clip, batch: Batch, prefix: str = "") -> None:
        rows = self.summarised(clip, batch.images)
        targets = one_hot(batch.labels.to(rows.device), len(self.kept["counts"])).to(rows)
        self.kept[f"{prefix}sums"] += targets.T @ rows
        self.kept[f"{prefix}counts"] += targets.sum(0)

    def prototypes(self) -> Float[Tensor, "c d"]:
        """Return the means of the classes seen; 0 of one that has no image yet."""
        sums, counts = (self.kept[name] + self.kept[f"new {name}"] for name in ("sums", "counts"))
        return (sums / counts.clamp(min=1)[:, None])[self.seen]

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Take the means anew, from plain images."""
        for name in ("sums", "counts"):
            self.kept[f"new {name}"].zero_()
        for batch in new:
            self._add(clip, batch)
