"""Learn the projection of an image tower on the pooled features that it projects (BOFA)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.methods.base.method import Clip, Images, MethodConfig, Prompts, Task
from everclip.methods.shared.prototypes import Prototypes
from everclip.models.pooled import projection_of


class Projected(Prototypes):
    """Base of methods with a projection of their own and class means of what it projects.

    Attributes:
        weight: the projection, which starts as the tower's, ``first``; the tower's bias stays.
    """

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(reads="pooled")
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
