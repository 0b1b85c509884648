"""Find the model's weights by their ordinary names, also under low-rank updates; keep tensors by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from everclip.methods.base.method import Clip, Method, MethodConfig, Prompts, Task

_LOW_RANK = re.compile(r"parametrizations\.(\w+)\.(original|0\.a|0\.b)$")


def ordinary(name: str) -> str:
    """Return a parameter's name without low-rank updates: ``proj.parametrizations.weight.0.a``: ``proj.weight``."""
    return _LOW_RANK.sub(r"\1", name)


def value(clip: Clip, name: str) -> Tensor:
    """Return the weight (or buffer) of this ordinary name as the towers use it, with gradients into its parameters."""
    return attrgetter(name)(clip.model)


def tower_weights(clip: Clip, trained: bool = False) -> Iterator[str]:
    """Yield ordinary names of the weights of both towers and of the logit scale, except those that ``tune`` holds.

    With ``trained``, only those that take a gradient now, which is settled by the first step of a phase.
    """
    every = chain(clip.image_parameters(), clip.text_parameters(), [("logit_scale", clip.logit_scale)])
    return iter(dict.fromkeys(ordinary(name) for name, p in every if p.requires_grad or not trained))


def weights(clip: Clip) -> dict[str, Tensor]:
    """Return copies of all the model's weights and buffers by ordinary name."""
    names = dict.fromkeys(map(ordinary, clip.model.state_dict()))
    return {name: value(clip, name).detach().clone() for name in names}


class Average:
    """The mean of some weights as they are at the start and whenever they are taken, kept up as they come."""

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.values = {name: weight.clone() for name, weight in start.items()}
        self.count = 1

    def load(self, state: Mapping[str, Any]) -> None:
        """Become the mean that was saved, each value on the device of the present one of that name."""
        values = state["values"].items()
        self.count = state["count"]
        self.values = {n: old.to(self.values[n].device) if n in self.values else old for n, old in values}

    @torch.no_grad()
    def take(self, clip: Clip) -> None:
        """Include the present weights in the mean."""
        self.count += 1
        for name, mean in self.values.items():
            mean += (value(clip, name) - mean) / self.count

    @torch.no_grad()
    def put(self, clip: Clip) -> None:
        """Make the mean the model's weights, which must be without low-rank updates."""
        for name, mean in self.values.items():
            value(clip, name).copy_(mean)


class Kept(Method):
    """A method that keeps tensors by name, whose shapes only a task's end tells; they are part of its state."""

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.kept: dict[str, Tensor] = {}
        self._device: torch.device | None = None

    def grow(self, clip: Clip, task: Task) -> None:
        super().grow(clip, task)
        self.kept_to(clip)

    def kept_to(self, clip: Clip) -> None:
        """Move what is kept, and what is restored from now on, to the model's device."""
        self._device = clip.device
        self.kept = self._placed(self.kept)

    def _placed(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors on the model's device; fp64 tensors and the counts with them on the CPU for Apple's GPUs."""
        if self._device is None:
            return dict(kept)
        beside = (torch.float64, torch.int64) if self._device.type == "mps" else ()
        return {n: tensor.to("cpu" if tensor.dtype in beside else self._device) for n, tensor in kept.items()}

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return what is kept under names with this prefix, without it."""
        return {key.removeprefix(prefix): kept for key, kept in self.kept.items() if key.startswith(prefix)}

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"kept": self.kept}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self.kept = self._placed(state["kept"])

    def state_bytes(self) -> int:
        keeping = (module for module in self.modules() if isinstance(module, Kept))
        return super().state_bytes() + sum(tensor.nbytes for one in keeping for tensor in one.kept.values())


def blend(anchor: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return ``(1 - share) anchor + share tuned``, the end points bit for bit; non-floats are ``tuned``'s."""
    if share in (0, 1):
        ends = tuned if share else anchor
        return {
            name: (ends if new.is_floating_point() else tuned)[name].clone() for name, new in tuned.items()
        }
    return {
        name: (1 - share) * anchor[name] + share * new if new.is_floating_point() else new.clone()
        for name, new in tuned.items()
    }


def largest(values: Tensor, share: float) -> Tensor:
    """Return a mask of the largest values: the fraction ``share`` of them, rounded down."""
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[values.flatten().topk(int(share * values.numel())).indices] = True
    return mask.view_as(values)
