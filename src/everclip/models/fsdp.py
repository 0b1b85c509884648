"""Shard the towers over the processes of a run in training, with torch's FSDP2.

Outside of a phase every process has the whole model, which teachers, tests and checkpoints read. In a phase each keeps
its part of every block's weights, gradients and AdamW moments; a block is put together when it is computed, forward and
backward, and freed afterwards. So the blocks take 1/n of 16 bytes per parameter on the device, besides activations, and
the whole model, 4 bytes per parameter, waits in main memory. docs/decisions/0016-towers-are-shared-out-in-a-phase.md
has the reasons.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from everclip.distributed import collectives
from everclip.models.clip import Clip
from everclip.models.passes import blocks
from everclip.models.towers import is_visual


@contextmanager
def answered() -> Iterator[None]:
    """Like ``collectives.answered``, for a step, where torch may raise for reasons other than a missing process."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            with collectives.answered():
                raise
        raise


class Shards:
    """Give a model a copy of its towers whose blocks the processes share, until ``close``.

    Args:
        clip: with ``requires_grad`` as it will train. Its whole towers wait in main memory.
        trained: the parameters that train, the model's and the method's.

    Attributes:
        parameters: ``trained``, with the model's replaced by the copy's.
        parts: this process's part of each of them, in the same memory; the optimizer steps these.
    """

    @answered()
    def __init__(self, clip: Clip, trained: Sequence[nn.Parameter]) -> None:
        self._clip, self._device = clip, clip.device
        self._whole = clip.model.to("cpu")
        self._copy = copy.deepcopy(self._whole)
        group = dist.group.WORLD
        assert group is not None, "several processes"
        _share_out(self._copy, DeviceMesh.from_group(group, self._device.type))
        self._copy.to(self._device)
        clip.put(self._copy)
        # it computes a row by the whole tower, for a prompt that other processes may not have
        self._text_trunk, clip.text_trunk = clip.text_trunk, None
        self._pairs = [*zip(self._whole.parameters(), self._copy.parameters(), strict=True)]
        copies = {id(mine): theirs for mine, theirs in self._pairs}
        self.parameters = [copies.get(id(parameter), parameter) for parameter in trained]
        self.parts = [
            nn.Parameter(parameter.to_local().detach()) if isinstance(parameter, DTensor) else parameter
            for parameter in self.parameters
        ]
        pairs = zip(self.parameters, self.parts, strict=True)
        self._shared = [(parameter, part) for parameter, part in pairs if parameter is not part]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While open, give the model its whole towers, with what was trained. All processes call it together."""
        self._collect()
        self._clip.put(self._whole)
        try:
            yield
        finally:
            self._clip.put(self._copy)

    @answered()
    @torch.no_grad()
    def _collect(self) -> None:
        for mine, theirs in self._pairs:
            if theirs.requires_grad:
                mine.copy_(whole_of(theirs))

    @torch.no_grad()
    def hand_out(self) -> None:
        """Give the copy the weights that were loaded into the whole towers."""
        for mine, theirs in self._pairs:
            value = mine.to(self._device)
            if isinstance(theirs, DTensor):
                theirs.to_local().copy_(_part(value, theirs))
            else:
                theirs.copy_(value)

    def close(self) -> None:
        """Give the model its whole towers back, with what was learned."""
        self._collect()
        self._clip.put(self._whole.to(self._device))
        self._clip.text_trunk = self._text_trunk

    # Gradients --------------------------------------------------------------------------------------------------

    def exchange(self) -> Float[Tensor, ""]:
        """Replace gradients, also those of ``parts``, by their means over the processes; return the 2-norm of all.

        FSDP has already averaged the gradients of sharded weights.
        """
        others = [parameter for parameter in self.parameters if not isinstance(parameter, DTensor)]
        collectives.mean_gradients(others)
        for parameter, part in self._shared:
            part.grad = None if parameter.grad is None else local(parameter.grad)
        apart, alike = (
            nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
            for weights in ([part for _, part in self._shared], others)
        )
        squared = (apart**2).to(self._device)
        with collectives.answered():
            dist.all_reduce(squared)
        return (squared + alike.to(self._device) ** 2).sqrt()

    def forget(self) -> None:
        """Drop all gradients."""
        for parameter, part in self._shared:
            parameter.grad = part.grad = None

    # The optimizer's state ----------------------------------------------------------------------------------------

    @answered()
    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an optimizer's state as one process would have it, in main memory; only the first has it whole.

        All processes call it together.
        """

        whole = {id(theirs): mine for mine, theirs in self._pairs}

        def joined(value: Tensor, parameter: DTensor) -> Tensor:
            shape = {"shape": parameter.shape, "stride": parameter.stride()}
            found = whole_of(DTensor.from_local(value, parameter.device_mesh, parameter.placements, **shape))
            if collectives.rank() > 0:
                return value
            # fused AdamW expects moments to have their parameter's memory layout
            return torch.empty_like(whole[id(parameter)], requires_grad=False).copy_(found)

        return self._mapped(optimizer, optimizer.state_dict(), joined)

    def shared_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return this process's part of such a state."""
        return self._mapped(
            optimizer, state, lambda value, parameter: _part(value.to(self._device).contiguous(), parameter)
        )

    def _mapped(
        self,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        change: Callable[[Tensor, DTensor], Tensor],
    ) -> dict[str, Any]:
        """Return the state with ``change`` applied to the moments of sharded weights; the step count is a scalar."""
        known = {id(part): parameter for parameter, part in self._shared}
        parts = [part for group in optimizer.param_groups for part in group["params"]]

        def changed(value: Tensor, part: Tensor) -> Tensor:
            parameter = known.get(id(part))
            return change(value, parameter) if isinstance(parameter, DTensor) and value.ndim else value

        moments = {
            number: {name: changed(value, parts[number]) for name, value in entry.items()}
            for number, entry in state["state"].items()
        }
        return {**state, "state": moments}


def _share_out(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the blocks and the embeddings of the towers that train; the rest is small.

    A completely frozen tower stays whole: if it is the text tower, each process computes only captions that it has not
    seen, and another process may have none to compute.
    """
    weights = ((name, weight) for name, weight in model.named_parameters() if not name.startswith("logit_"))
    training = {is_visual(name) for name, weight in weights if weight.requires_grad}
    every = {id(block) for block in blocks(model)}
    inside = tuple(f"{path}." for path, module in model.named_modules() if id(module) in every)
    owners: dict[int, nn.Module] = {}
    for path, module in [*model.named_modules()]:
        if is_visual(path) not in training:
            continue
        if isinstance(module, nn.Embedding) and not path.startswith(inside):
            _share(module, mesh)
        members = [child for child in module.children() if id(child) in every]
        for block in members:
            _share(block, mesh)
        if members:  # the module that calls the blocks fetches the next one while one is computed
            above = path.rpartition(".")[0]
            owner = module if isinstance(module, nn.Sequential) or not above else model.get_submodule(above)
            owners[id(owner)] = owner
    for owner in owners.values():
        if not isinstance(owner, nn.ModuleList):
            _share(owner, mesh)


def _share(module: nn.Module, mesh: DeviceMesh) -> None:
    for weight in module.parameters():
        if not isinstance(weight, DTensor):  # channels may come last in memory, which FSDP refuses
            weight.data = weight.data.contiguous()
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole_of(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded. All processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is on this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _part(value: Tensor, like: DTensor) -> Tensor:
    """Return this process's part of a tensor that every process has whole, sharded like ``like``."""
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to_local()
