"""Exchange values among the processes of a run under torchrun.

Every process loads the same data and makes the same batches, and each passes its own part of a batch through the
towers. Features are gathered, and every process computes the loss of the whole batch from the same numbers: so
labels, estimators and group weights are the same everywhere without being exchanged. A process keeps its own rows of
the features' gradient. docs/decisions/0014-every-process-computes-the-loss.md has the reasons.

Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from everclip.errors import RunError

TIMEOUT = timedelta(seconds=45)
"""Longest wait for other processes within a step; a killed one is noticed immediately."""
PATIENCE = timedelta(minutes=30)
"""Longest wait while processes may do different things: while a run starts, is saved or is tested."""
_LARGE = 1 << 18
"""Size from which a gradient is summed on its own."""


class Gone(RunError):
    """Another process has ended, or does not answer."""


def size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def here() -> int:
    """Return the number of the run's processes on this machine, as torchrun tells it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if _joined() else 1


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def answered() -> Iterator[None]:
    """Turn torch's errors about a missing process into one line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        raise Gone(
            "another process of this run has ended or does not answer: everclip resume RUN, again under"
            " torchrun, continues from the last checkpoint; torchrun --max-restarts=3 with out=PATH does so"
            " automatically"
        ) from error


patient: list[Any] = []
"""The group of all processes that waits longer, where there are several."""


# What they exchange -----------------------------------------------------------------------------------------------


def parts(count: int, number: int | None = None) -> list[slice]:
    """Share ``count`` rows among the processes, or a ``number`` of them: the first parts are longer by one at most."""
    edges = [0, *accumulate(len(part) for part in np.array_split(np.arange(count), number or size()))]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def own(count: int) -> slice:
    """Return this process's part of ``count`` rows."""
    return parts(count)[rank()]


def chunks(count: int, most: int) -> list[slice]:
    """Return this process's part of ``count`` rows in chunks of at most ``most`` (2 or more), equally many in every
    process.

    Sharded towers run in all processes at once.
    """
    longest, mine = parts(count)[0], own(count)
    return [
        slice(mine.start + part.start, mine.start + part.stop)
        for part in parts(mine.stop - mine.start, -(-longest.stop // most))
    ]


def gathered(rows: Shaped[Tensor, "n ..."], counts: Sequence[int]) -> Shaped[Tensor, "total ..."]:
    """Return the rows of all processes, process after process, without gradient.

    Args:
        rows: this process's.
        counts: of each process.
    """
    if size() == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in counts]
    with answered():
        dist.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


def gathered_mask(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Return the whole mask of ``count`` rows, of which ``mask`` is this process's part."""
    lengths = [part.stop - part.start for part in parts(count)]
    return gathered(torch.from_numpy(mask.astype(np.uint8)), lengths).numpy().astype(bool)


def told(value: Any) -> list[Any]:
    """All-gather a JSON value (30 min timeout)."""
    if size() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    with answered():
        dist.all_gather(lengths, torch.tensor([len(text)]), group=patient[0])
    return [
        json.loads(part.numpy().tobytes())
        for part in gathered(text, [int(n) for n in lengths]).split([int(n) for n in lengths])
    ]


def from_first(value: Any) -> Any:
    """Return the JSON value of the first process; with one process the value itself. Waits long."""
    return value if size() == 1 else told(value if rank() == 0 else None)[0]


def ragged(rows: Shaped[Tensor, "n ..."] | None) -> Shaped[Tensor, "total ..."] | None:
    """Return ``gathered`` where no process knows the number or width of others' rows; None for no rows. Waits long."""
    if size() == 1:
        return rows
    about = told(None if rows is None else [str(rows.dtype).removeprefix("torch."), *rows.shape])
    known = next((each for each in about if each), None)
    if known is None:
        return None
    kind, _, *width = known
    mine = torch.zeros(0, *width, dtype=getattr(torch, kind)) if rows is None else rows.cpu()
    return gathered(mine, [each[1] if each else 0 for each in about])


def most(*values: int) -> tuple[int, ...]:
    """Return the maximum of each value over the processes."""
    if size() == 1:
        return values
    found = torch.tensor(values, dtype=torch.int64)
    with answered():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(found.tolist())


def wait() -> None:
    """Barrier (30 min timeout)."""
    told(None)


# Features and gradients -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """The way the processes share a batch.

    Args:
        counts: images of each process, at least one; they are the batch in the order of the processes.
        light: whether a process's loss is that of its own images, with the other features as constants (the
            communication-light form of FastCLIP), and only numbers per sample are exchanged after them.
    """

    counts: tuple[int, ...]
    light: bool = False

    @property
    def own(self) -> slice:
        """The rows of the batch that are this process's."""
        start = sum(self.counts[: rank()])
        return slice(start, start + self.counts[rank()])

    def whole(self, features: Shaped[Tensor, "own d"]) -> Shaped[Tensor, "all d"]:
        """Return features of the whole batch from those of this process's images, to which their gradient goes.

        Args:
            features: of one view after the other where there are several.
        """
        views = len(features) // self.counts[rank()]
        assert len(features) == views * self.counts[rank()], "features of other images than the batch's"
        apart = features.unflatten(0, (views, -1)).transpose(0, 1)
        return with_gradient(apart, self.counts).transpose(0, 1).flatten(0, 1)

    def numbers(self, values: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
        """Return numbers of all images from those of this process's, without gradient."""
        return gathered(values.contiguous(), self.counts)


def with_gradient(rows: Shaped[Tensor, "n ..."], counts: Sequence[int]) -> Shaped[Tensor, "total ..."]:
    """Return ``gathered``; ``rows`` get this process's part of the gradient, times the number of processes.

    ``mean_gradients`` takes the mean over processes: for what all compute alike (a head, a penalty) that is the value
    itself; for what each computes for its own rows this factor makes it the sum.
    """
    return _Gather.apply(rows, tuple(counts))  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.start = sum(counts[: rank()])
        ctx.count = counts[rank()]
        return gathered(rows.contiguous(), counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.start : ctx.start + ctx.count] * size(), None


def mean_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes. All have the same gradients, in the same order."""
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    apart = [gradient.numel() >= _LARGE and gradient.is_contiguous() for gradient in gradients]
    large = [gradient for gradient, alone in zip(gradients, apart, strict=True) if alone]
    small = [gradient for gradient, alone in zip(gradients, apart, strict=True) if not alone]
    joint = torch.cat([gradient.flatten() for gradient in small]) if small else torch.zeros(0)
    with answered():
        works = [dist.all_reduce(gradient, async_op=True) for gradient in [*large, joint] if gradient.numel()]
        for work in works:
            work.wait()  # pyright: ignore[reportOptionalMemberAccess]
    for summed in [*large, joint]:
        summed /= size()
    places = joint.split([gradient.numel() for gradient in small])
    for gradient, summed in zip(small, places, strict=True):
        gradient.copy_(summed.view_as(gradient))
