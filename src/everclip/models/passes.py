"""Run the towers in training: in pieces, with recomputed blocks, with dropped patches, or compiled.

The towers' inputs are cut into pieces, not the batch. The first pass of a piece keeps only its input; the loss then
sees the features of the whole batch, and its gradient goes back through one piece after another, each recomputed (Gao
et al. 2021, https://arxiv.org/abs/2101.06983). So a contrastive loss compares all pairs, its estimators are updated
once, random draws are those of the whole batch, and methods need not know about pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.config.models import Train
from everclip.data.loader import Batch
from everclip.distributed import collectives
from everclip.errors import UserError
from everclip.models import depthwise
from everclip.models.folded import FoldedConv2d, FoldedConv2dSame
from everclip.models.foreign import TimmModel, TimmTransformer, VisionTransformer
from everclip.models.pieces import again, unwatched

if TYPE_CHECKING:
    from everclip.models.clip import Clip

UNITS = (nn.MultiheadAttention, nn.Linear, nn.Conv2d)
"""Modules that count as one layer, whatever they contain."""


class Passes:
    """The way the towers run, as ``train`` says. Raises UserError where the tower or the device cannot run so."""

    def __init__(self, clip: Clip, train: Train) -> None:
        self._clip = clip
        self._pieces = train.accumulate
        self._share = train.patch_dropout
        self._drop = _patches(clip) if train.patch_dropout > 0 else None
        if self._drop is not None and collectives.size() > 1:
            raise UserError(
                "train.patch_dropout draws for whole batches: use train.patch_dropout=0, or start one process"
            )
        self._forwards: list[tuple[Any, Callable[..., Any]]] = []
        self._wide: list[tuple[Any, str]] = []
        if clip.device.type == "cpu":
            for part in filter(depthwise.suits, clip.model.visual.modules()):
                folded = isinstance(part, FoldedConv2d | FoldedConv2dSame)
                self._wide.append((part, "convolve" if folded else "forward"))
        if not train.checkpointing and not train.compile:
            return
        if train.compile and clip.device.type == "cpu":
            raise UserError("train.compile=true gains nothing on a CPU: leave it out, or use device=cuda")
        for block in blocks(clip.model):
            forward = compiled(block) if train.compile else block.forward
            self._forwards.append(
                (block, partial(_twice, block, forward) if train.checkpointing else forward)
            )

    @contextmanager
    def open(self, batch: Batch) -> Iterator[None]:
        """While open, for a whole step with its backward pass, run the towers as configured.

        Random draws in it depend on the run's seed and the batch's place alone.
        """
        with ExitStack() as stack:
            stack.enter_context(self._clip.running(pieces=self._pieces, share=batch.share))
            for module, name in self._wide:
                _replace(stack, module, partial(depthwise.forward, module), name)
            for module, forward in self._forwards:
                _replace(stack, module, forward)
            if self._drop is not None:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                seed = int(batch.rng("patch dropout").integers(2**63))
                torch.default_generator.manual_seed(seed)  # checkpoints restore this generator, and no other
                module, ahead = self._drop
                _replace(stack, module, partial(self._without_some, ahead))
            yield

    def _without_some(self, ahead: int, tokens: Float[Tensor, "b l w"]) -> Float[Tensor, "b fewer w"]:
        """Return the first ``ahead`` tokens and some others of each image (https://arxiv.org/abs/2212.00794)."""
        unwatched(self._clip.model.visual, "train.patch_dropout leaves patches out")
        count = tokens.shape[1] - ahead
        kept = max(1, round(count * (1 - self._share)))
        drawn = torch.rand(len(tokens), count).argsort(1)[:, :kept].sort(1).values.to(tokens.device)
        patches = tokens[:, ahead:].gather(1, drawn[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, :ahead], patches], 1)


def blocks(tower: nn.Module) -> list[nn.Module]:
    """Return the blocks that a tower consists of: transformer blocks, or stages of a convolutional tower."""
    found: list[nn.Module] = []
    for child in tower.children():
        members = [*child.children()] if isinstance(child, nn.ModuleList | nn.Sequential) else []
        inner = [part for part in members if not isinstance(part, UNITS) and [*part.children()]]
        found += inner or blocks(child)
    return found


def compiled(block: nn.Module, backend: Any = "inductor") -> Callable[..., Any]:
    """Return the forward pass of a block, compiled at its first call; blocks of one kind share the result."""
    return torch.compile(block.forward, backend=backend)


def _twice(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return a block's output; the backward pass recomputes it, without hooks that a method has removed meanwhile.

    Raises UserError where a method has hooks inside the block; hooks on the block itself run once, around both.
    """
    if torch.is_grad_enabled():
        for part in block.children():
            unwatched(part, "train.checkpointing=true runs blocks twice")
    return again(forward, *args, **kwargs)


def _replace(
    stack: ExitStack, module: nn.Module, function: Callable[..., Any], name: str = "forward"
) -> None:
    """Replace one method of a module, by default its forward pass, until the stack is closed."""
    setattr(module, name, function)
    stack.callback(delattr, module, name)


def _patches(clip: Clip) -> tuple[nn.Module, int]:
    """Return the module that all tokens pass after the position embedding, and how many tokens precede the patches."""
    if clip.trunk is not None:
        raise UserError("kept activations have all patches: use cache.trunk=off or train.patch_dropout=0")
    tower: Any = clip.model.visual
    if isinstance(tower, VisionTransformer):
        return tower.patch_dropout, 1
    if isinstance(tower, TimmModel) and isinstance(tower.trunk, TimmTransformer):
        return tower.trunk.patch_drop, tower.trunk.num_prefix_tokens
    raise UserError(f"the image tower of {clip.name} is not a vision transformer: use train.patch_dropout=0")
