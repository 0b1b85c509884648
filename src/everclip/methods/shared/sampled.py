"""Draw features of classes whose images are gone from a Gaussian for each, kept when its task ended."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from everclip.methods.base.method import Batch, Clip, MethodConfig, Prompts
from everclip.methods.shared.frozen import Frozen
from everclip.methods.shared.gaussian import Gaussian, spread
from everclip.seeding import generator

FLOOR = 1e-4
"""What is added to each variance."""


class Sampled(Frozen):
    """Base of methods on frozen towers that keep a Gaussian of each class in each domain.

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
