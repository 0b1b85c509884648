"""A normal distribution around each class embedding, by linear layers of the class's task (CLAP4CLIP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softplus

from everclip.methods.shared.head import columns


class Heads(nn.Module):
    """mu and sigma for each class of each task.

    Attributes:
        tasks, labels: of each head, in the order in which they came.
    """

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
    """0.999 softplus(x) + 0.001."""
    return 0.999 * softplus(values) + 0.001


def divergence(mu: Float[Tensor, "h d"], sigma: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
    """Return the sum over dimensions of the mean over classes of KL( N(mu, sigma) || N(0, 1) )."""
    return (0.5 * (sigma.square() + mu.square() - 1) - sigma.log()).mean(0).sum()


def apart(texts: Float[Tensor, "h d"], drawn: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
    """CE( Q, diagonal ) of the means over templates and draws."""
    return cross_entropy(texts @ drawn.T, torch.arange(len(texts), device=texts.device))
