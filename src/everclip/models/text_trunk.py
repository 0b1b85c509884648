"""Keep the frozen text tower's (or its lower blocks') output per prompt, computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.models.attention import CpuAttention
from everclip.models.towers import is_visual

Raw = Callable[[list[str]], Tensor]
"""Maps prompts to the output of the whole text tower."""

MOST_BYTES = 512 << 20
"""Largest size of kept activations; beyond it they are computed each time, with the same result."""
_PROBE = ["a photo of a cat.", "a dog"]


class Kept:
    """A row for each prompt, in fp32, kept as long as the weights that it depends on stay the same.

    Each prompt is computed alone, so that its row does not depend on the other prompts of the first request.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._bytes = 0
        self._stamp: tuple[tuple[int, int], ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        """Copy without rows: the weights of a copy may change."""
        return Kept()

    def clear(self) -> None:
        """Drop all rows."""
        self._rows, self._bytes, self._stamp = {}, 0, ()

    def rows(
        self, prompts: Iterable[str], weights: Collection[nn.Parameter], compute: Callable[[str], Tensor]
    ) -> list[Tensor]:
        """Return rows of prompts, from memory or computed, without a gradient and in fp32.

        Args:
            weights: all that a row depends on; at least one.
        """
        stamp = tuple((id(weight), weight._version) for weight in weights)
        if stamp != self._stamp:
            self.clear()
            self._stamp = stamp
        device = next(iter(weights)).device.type
        # as in a step of fp32, wherever a row is first needed
        attention = CpuAttention() if device == "cpu" else nullcontext()
        found = []
        with torch.no_grad(), torch.autocast(device, enabled=False), attention:
            for prompt in prompts:
                row = self._rows.get(prompt)
                if row is None:
                    row = compute(prompt).float()
                    if self._bytes + row.nbytes <= MOST_BYTES:
                        self._rows[prompt] = row
                        self._bytes += row.nbytes
                found.append(row)
        return found


class TextTrunk:
    """Inputs of the last blocks of a text tower, kept by prompt in fp32 while the weights below stay as they are.

    The tower runs as always, but without its lower blocks, and the input of the first remaining block is replaced by
    the kept one: embedding, masks and pooling are the tower's own.

    Args:
        owner: the module that has the blocks.
        name: of their list in it.
        count: number of blocks above.
        lower: the parameters below; changing one in place drops all rows.
    """

    def __init__(self, owner: nn.Module, name: str, count: int, lower: Collection[nn.Parameter]) -> None:
        self._owner, self._name, self._count = owner, name, count
        self._lower = tuple(lower)
        blocks: Any = getattr(owner, name)
        self._upper = nn.ModuleList(list(blocks)[-count:])
        self._kept = Kept()

    @classmethod
    def of(cls, model: nn.Module, held: Collection[str], count: int, raw: Raw) -> TextTrunk | None:
        """Make one for a model whose ``held`` parameters never train; the text tower's last ``count`` blocks do.

        None for a tower with no block below these, and for one whose output changes when it starts in the middle.
        """
        named = {name: p for name, p in model.named_parameters() if name in held and not is_visual(name)}
        for path, blocks in model.named_modules():
            inside = any(name.startswith(path + ".") for name in named)
            if inside and isinstance(blocks, nn.ModuleList) and len(blocks) > count and not is_visual(path):
                parent, _, name = path.rpartition(".")
                found = cls(model.get_submodule(parent), name, count, named.values())
                return found if found._agrees(raw) else None
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTrunk:
        """Copy for a copy of the model, without rows: the copy's weights may change."""
        owner, lower = copy.deepcopy((self._owner, self._lower), memo)
        return TextTrunk(owner, self._name, self._count, lower)

    def __call__(self, prompts: list[str], raw: Raw) -> Float[Tensor, "p d"]:
        """Return ``raw(prompts)``, with a gradient from the last blocks upwards."""
        rows = self._kept.rows(prompts, self._lower, lambda prompt: self._entering(prompt, raw))

        def put(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            first, *rest = inputs or (named["hidden_states"],)
            hidden = _padded(rows, first)
            return ((hidden, *rest), named) if inputs else ((), named | {"hidden_states": hidden})

        whole = getattr(self._owner, self._name)
        setattr(self._owner, self._name, self._upper)
        try:
            with self._upper[0].register_forward_pre_hook(put, with_kwargs=True):
                return raw(prompts)
        finally:
            setattr(self._owner, self._name, whole)

    def _entering(self, prompt: str, raw: Raw) -> Float[Tensor, "_length width"]:
        entered: list[Tensor] = []

        def take(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            entered.append(inputs[0] if inputs else named["hidden_states"])

        with self._upper[0].register_forward_pre_hook(take, with_kwargs=True):
            raw([prompt])
        return entered[0][0]

    def _agrees(self, raw: Raw) -> bool:
        """Return whether the tower's output stays the same when it starts in the middle."""
        with torch.no_grad():
            expected = raw(_PROBE)
            try:
                found = self(_PROBE, raw)
            except (RuntimeError, TypeError, IndexError, KeyError, AttributeError):  # a tower of another kind
                return False
        self._kept.clear()  # nobody will ask for these again
        return bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-4))


def _padded(
    rows: Sequence[Float[Tensor, "_length width"]], like: Float[Tensor, "p longest width"]
) -> Float[Tensor, "p longest width"]:
    """Return rows of several lengths in one tensor of the shape of ``like``, followed by masked padding."""
    whole = torch.zeros(like.shape, dtype=rows[0].dtype, device=like.device)
    for place, row in enumerate(rows):
        length = min(len(row), whole.shape[1])
        whole[place, :length] = row[:length]
    return whole
