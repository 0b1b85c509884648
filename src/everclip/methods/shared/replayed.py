"""Keep the mean feature of each class, and draw near those of old ones in place of their images (ENGINE)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from everclip.methods.base.method import Clip
from everclip.methods.shared.frozen import Frozen


class Summed(nn.Module):
    """The unit-length sum of a layer per task, all but the newest kept as one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole, self.newest = nn.Linear(width, width), nn.Linear(width, width)
        for part in self.whole.parameters():
            nn.init.zeros_(part)

    @torch.no_grad()
    def renew(self) -> None:
        """Add the newest layer to the others, and begin a new one."""
        for whole, newest in zip(self.whole.parameters(), self.newest.parameters(), strict=True):
            whole += newest
        width = len(self.whole.weight)
        self.newest = nn.Linear(width, width).to(self.whole.weight.device)

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return normalize(self.whole(rows) + self.newest(rows), dim=1)


def noisy(images: Tensor, noise: float, draw: torch.Generator) -> UInt8[Tensor, "b 3 h w"]:
    """Return uint8 pictures with normal noise, of pixels in 0..1."""
    pixels = images.to(draw.device) / 255
    changed = pixels + noise * torch.randn(pixels.shape, generator=draw, device=draw.device)
    return (changed.clamp(0, 1) * 255).to(torch.uint8)


class Replayed(Frozen):
    """Base of methods with the mean of each class's features as the image tower gives them, over all tasks."""

    def build(self, clip: Clip, width: int) -> None:
        classes = len(self.prompts.names)
        self.kept["sums"] = torch.zeros(classes, width, device=clip.device)
        self.kept["counts"] = torch.zeros(classes, device=clip.device)

    def include(self, raw: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> None:
        """Add the images of a task."""
        targets = one_hot(labels.to(raw.device), len(self.kept["counts"])).to(raw)
        self.kept["sums"] += targets.T @ raw
        self.kept["counts"] += targets.sum(0)

    def replay(self, draw: torch.Generator, noise: float) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
        """Return the means of all old classes with normal noise, and where these stand in ``seen``."""
        old = self.seen[: self.old]
        means = self.kept["sums"][old] / self.kept["counts"][old].clamp(min=1)[:, None]
        places = (self.kept["counts"][old] > 0).nonzero()[:, 0]
        means = means[places]
        return means + noise * torch.randn(means.shape, generator=draw, device=means.device), places
