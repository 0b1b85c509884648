"""Add routed experts beside the MLP of each transformer block of both towers (MoE-Adapters)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from everclip.methods.shared.frozen import dropped
from everclip.methods.shared.mixture import branches

FACTOR, LEAST = 0.1, 0.01
"""What an expert's output is multiplied with, and the least deviation of a gate's noise."""


class Experts(nn.Module):
    """sum_i g_i E_i(a),  E(a) = 0.1 ( up relu(down a) ),  g = softmax over the two largest of c W.

    Args:
        width: of tokens; hidden: of an expert; count: of experts.
        dropout: of what an expert's first layer gives.
    """

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
        """Return what the tokens change by; noise of the gate and dropout only with a generator."""
        gates = self.gates(tokens[:, 0], random)
        total = torch.zeros_like(tokens)
        for place, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            found = FACTOR * up(dropped(down(tokens).relu(), self.dropout, random))
            total = total + gates[:, place, None, None].to(found) * found
        return total

    def gates(
        self, first: Float[Tensor, "b w"], random: torch.Generator | None = None
    ) -> Float[Tensor, "b e"]:
        """Return g of each row of first tokens; 0 of all but two experts."""
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

    @contextmanager
    def beside(self, model: nn.Module, random: torch.Generator | None = None) -> Iterator[None]:
        """Have each block give ``a + mlp(norm(a)) + experts(a)`` while it is open."""
        with ExitStack() as hooks:
            for (norm, end), experts in zip(branches(model)[1::2], self.layers, strict=True):
                held: list[Tensor] = []

                def note(_module: Any, given: Any, held: list[Tensor] = held) -> None:
                    held.append(given[0])

                def add(
                    _module: Any,
                    _given: Any,
                    output: Tensor,
                    held: list[Tensor] = held,
                    experts: nn.Module = experts,
                ) -> Tensor:
                    return output + experts(held.pop(), random).to(output)

                hooks.callback(norm.register_forward_pre_hook(note).remove)
                hooks.callback(end.register_forward_hook(add).remove)
            yield
