"""Mix convolutional adapters beside the two branches of each block of a vision transformer (CMoA)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from everclip.models.foreign import Block, CustomResidualAttentionBlock, ResidualAttentionBlock

ROUTER = 64
"""Width of the router's hidden layer."""


def mix(maps: Float[Tensor, "b a ..."], logits: Float[Tensor, "b a"]) -> Float[Tensor, "b ..."]:
    """sum_a r_a f_a with r = softmax(logits)."""
    return torch.einsum("ba,ba...->b...", logits.softmax(1).to(maps), maps)


def overlap(maps: Float[Tensor, "b a ..."]) -> Float[Tensor, ""]:
    """Return the mean over pairs of experts, and over images, of the cosine between their maps as vectors."""
    flat = maps.flatten(2)
    pairs = combinations(range(flat.shape[1]), 2)
    return torch.stack([cosine_similarity(flat[:, a], flat[:, c], dim=1) for a, c in pairs]).mean()


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return x * torch.sigmoid(1.702 * x)


class Mixture(nn.Module):
    """Tokens down to a few channels, a routed sum of 3 x 3 convolutions over their grid, and up again.

    Tokens without a place in the grid (the class token) go through each convolution as a map of one pixel and get the
    plain mean. The layer up starts at zero, so that a new mixture changes nothing.
    """

    def __init__(self, width: int, bottleneck: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.experts, self.dropout, self.act = experts, dropout, QuickGelu()
        self.down = nn.Linear(width, bottleneck)
        self.convolve = nn.Conv2d(bottleneck, experts * bottleneck, 3, padding=1)
        self.router = nn.Sequential(nn.Linear(bottleneck, ROUTER), QuickGelu(), nn.Linear(ROUTER, experts))
        self.up = nn.Linear(bottleneck, width)
        for expert in self.convolve.weight.chunk(experts):
            nn.init.xavier_uniform_(expert)
        for zero in (self.convolve.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(
        self, tokens: Float[Tensor, "b l w"], random: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b l w"], Float[Tensor, "b a c s s"]]:
        """Return what the tokens change by, and the experts' maps; dropout only with a generator ``random``."""
        low = self.act(self.down(tokens)).transpose(1, 2)
        side = math.isqrt(low.shape[2])
        ahead = low.shape[2] - side**2
        grid = low[:, :, ahead:].unflatten(2, (side, side))
        maps = self._experts(grid)
        patches = mix(maps, self.router(grid.mean((2, 3)))).flatten(2)
        pixels = low[:, :, :ahead].transpose(1, 2).flatten(0, 1)[:, :, None, None]
        single = self._experts(pixels).mean(1).flatten(1).unflatten(0, (low.shape[0], ahead)).transpose(1, 2)
        out = self.act(torch.cat([single, patches], 2).transpose(1, 2))
        if random is not None and self.dropout > 0:
            keep = torch.empty_like(out).bernoulli_(1 - self.dropout, generator=random)
            out = out * keep / (1 - self.dropout)
        return self.up(out), maps

    def _experts(self, grid: Float[Tensor, "n c s t"]) -> Float[Tensor, "n a c s t"]:
        return self.convolve(grid).unflatten(1, (self.experts, -1))


class Mixtures(nn.Module):
    """One mixture beside each branch of an image tower, which itself is not changed."""

    def __init__(self, visual: nn.Module, bottleneck: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Mixture(norm.weight.shape[0], bottleneck, experts, dropout) for norm, _ in branches(visual)
        )

    @contextmanager
    def beside(
        self, visual: nn.Module, scale: float, random: torch.Generator | None = None
    ) -> Iterator[list[Tensor]]:
        """Have each branch of the tower give ``branch(norm(x)) + scale * mixture(norm(x))`` while it is open.

        Yields:
            the maps of each mixture, in the order in which the tower runs.
        """
        maps: list[Tensor] = []
        with ExitStack() as hooks:
            for (norm, end), mixture in zip(branches(visual), self.layers, strict=True):
                held: list[Tensor] = []

                def note(_module: Any, _inputs: Any, output: Tensor, held: list[Tensor] = held) -> None:
                    held.append(output)

                def add(
                    _module: Any,
                    _inputs: Any,
                    output: Tensor,
                    held: list[Tensor] = held,
                    mixture: nn.Module = mixture,
                ) -> Tensor:
                    change, found = mixture(held.pop(), random)
                    maps.append(found)
                    return output + scale * change

                hooks.callback(norm.register_forward_hook(note).remove)
                hooks.callback(end.register_forward_hook(add).remove)
            yield maps


def branches(visual: nn.Module) -> list[tuple[Any, nn.Module]]:
    """Return the norm that each branch of each transformer block starts with, and the module that it ends with."""
    found: list[tuple[Any, nn.Module]] = []
    for block in visual.modules():
        if isinstance(block, ResidualAttentionBlock | CustomResidualAttentionBlock):
            found += [(block.ln_1, block.ls_1), (block.ln_2, block.ls_2)]
        elif isinstance(block, Block):
            found += [(block.norm1, block.ls1), (block.norm2, block.ls2)]
    return found
