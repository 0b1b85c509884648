"""Route adapters beside the branches of transformer blocks, which themselves do not change (CMoA, MoE-Adapters)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from everclip.methods.shared.frozen import dropped
from everclip.models.foreign import Block, CustomResidualAttentionBlock, ResidualAttentionBlock

ROUTER = 64
"""Width of the router's hidden layer of a mixture."""
FACTOR, LEAST = 0.1, 0.01
"""Factor of an expert's output, and least standard deviation of a gate's noise."""
Branch = tuple[Any, nn.Module]
"""The norm that a branch starts with, and the module that it ends with."""


def mix(maps: Float[Tensor, "b a ..."], logits: Float[Tensor, "b a"]) -> Float[Tensor, "b ..."]:
    """Return sum_a r_a f_a with r = softmax(logits)."""
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
    plain mean. The layer ``up`` starts at zero, so that a new mixture changes nothing.
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
        """Return the change of the tokens, and the experts' maps; dropout only with a generator ``random``."""
        low = self.act(self.down(tokens)).transpose(1, 2)
        side = math.isqrt(low.shape[2])
        ahead = low.shape[2] - side**2
        grid = low[:, :, ahead:].unflatten(2, (side, side))
        maps = self._experts(grid)
        patches = mix(maps, self.router(grid.mean((2, 3)))).flatten(2)
        pixels = low[:, :, :ahead].transpose(1, 2).flatten(0, 1)[:, :, None, None]
        single = self._experts(pixels).mean(1).flatten(1).unflatten(0, (low.shape[0], ahead)).transpose(1, 2)
        out = self.act(torch.cat([single, patches], 2).transpose(1, 2))
        return self.up(dropped(out, self.dropout, random)), maps

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
        """While open, have each branch return ``branch(norm(x)) + scale * mixture(norm(x))``.

        Yield the maps of each mixture, in the order in which the tower runs.
        """
        maps: list[Tensor] = []

        def add(mixture: nn.Module, _before: Tensor, normed: Tensor, output: Tensor) -> Tensor:
            change, found = mixture(normed, random)
            maps.append(found)
            return output + scale * change

        with adding(branches(visual), self.layers, add):
            yield maps


@contextmanager
def adding(
    places: list[Branch], layers: nn.ModuleList, add: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """While open, replace the output of each branch.

    Args:
        places: the branches; layers: one for each.
        add: maps a layer, the tokens before and after the branch's norm, and the branch's own output to the new one.
    """
    with ExitStack() as hooks:
        for (norm, end), layer in zip(places, layers, strict=True):
            held: list[tuple[Tensor, Tensor]] = []

            def note(_module: Any, given: Any, output: Tensor, held: Any = held) -> None:
                held.append((given[0], output))

            def put(_module: Any, _given: Any, output: Tensor, held: Any = held, own: Any = layer) -> Tensor:
                before, normed = held.pop()
                return add(own, before, normed, output)

            hooks.callback(norm.register_forward_hook(note).remove)
            hooks.callback(end.register_forward_hook(put).remove)
        yield


def branches(visual: nn.Module) -> list[Branch]:
    """Return the branches of each transformer block."""
    found: list[Branch] = []
    for block in visual.modules():
        if isinstance(block, ResidualAttentionBlock | CustomResidualAttentionBlock):
            found += [(block.ln_1, block.ls_1), (block.ln_2, block.ls_2)]
        elif isinstance(block, Block):
            found += [(block.norm1, block.ls1), (block.norm2, block.ls2)]
    return found


class Experts(nn.Module):
    """sum_i g_i E_i(a),  E(a) = 0.1 ( up relu(down a) ),  g = softmax over the two largest of c W."""

    def __init__(self, width: int, hidden: int, count: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.down = nn.ModuleList(nn.Linear(width, hidden) for _ in range(count))
        self.up = nn.ModuleList(nn.Linear(hidden, width) for _ in range(count))
        self.router, self.noise = (nn.Parameter(torch.zeros(width, count)) for _ in range(2))
        for layer in self.up:
            for part in layer.parameters():
                nn.init.zeros_(part)

    def forward(self, tokens: Float[Tensor, "b l w"], random: torch.Generator | None = None) -> Tensor:
        """Return the change of the tokens; noise of the gate and dropout only with a generator."""
        gates = self.gates(tokens[:, 0], random)
        total = torch.zeros_like(tokens)
        for place, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            found = FACTOR * up(dropped(down(tokens).relu(), self.dropout, random))
            total = total + gates[:, place, None, None].to(found) * found
        return total

    def gates(
        self, first: Float[Tensor, "b w"], random: torch.Generator | None = None
    ) -> Float[Tensor, "b e"]:
        """Return g for each row of first tokens; 0 for all but two experts."""
        logits = first.float() @ self.router
        if random is not None:
            drawn = torch.randn(logits.shape, generator=random, device=logits.device)
            logits = logits + drawn * (softplus(first.float() @ self.noise) + LEAST)
        best = logits.topk(min(2, logits.shape[1]), dim=1)
        return torch.zeros_like(logits).scatter(1, best.indices, best.values.softmax(1))


class BlockExperts(nn.Module):
    """Experts beside the MLP of each block of a model's towers, which themselves are not changed."""

    def __init__(self, model: nn.Module, hidden: int, count: int, dropout: float) -> None:
        super().__init__()
        widths = [norm.weight.shape[0] for norm, _ in branches(model)[1::2]]
        self.layers = nn.ModuleList(Experts(width, hidden, count, dropout) for width in widths)

    def beside(self, model: nn.Module, random: torch.Generator | None = None) -> AbstractContextManager[None]:
        """While open, have each block return ``a + mlp(norm(a)) + experts(a)``."""

        def add(experts: nn.Module, before: Tensor, _normed: Tensor, output: Tensor) -> Tensor:
            return output + experts(before, random).to(output)

        return adding(branches(model)[1::2], self.layers, add)
