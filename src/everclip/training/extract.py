"""Compute rows (features, scores) of many images, shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.loader import Batch, Loader
from everclip.data.scenario import Task
from everclip.distributed import collectives
from everclip.errors import NonFinite, RunError
from everclip.training.nonfinite import located

Rows = tuple[Shaped[Tensor, "n ..."], Int64[Tensor, " n"], Int64[Tensor, " n"]]
"""Rows on the CPU, with the labels and the ids of their images."""


@torch.inference_mode()
def spread(loader: Loader, images: ImageSet, compute: Callable[[Batch], Tensor]) -> Rows | None:
    """Compute rows of the readable images, in order; None if there are none.

    Processes share the batches, which are the same as with one process: each image is computed once, with the same
    neighbours.

    Raises:
        NonFinite: a row has a nan. An inf is no error: a score of -inf means that a class cannot be the answer.
    """
    rows, about = [], []
    for batch in loader.plain(images, shared=True):
        rows.append(compute(batch).cpu())
        number = torch.full_like(batch.labels, batch.key[3])
        about.append(torch.stack([number, batch.labels, batch.ids], 1))
    found = collectives.ragged(torch.cat(rows) if rows else None)
    columns = collectives.ragged(torch.cat(about) if about else None)
    if collectives.size() > 1:
        loader.agree()
    if found is None or columns is None:
        return None
    wrong = columns[found.reshape(len(found), -1).isnan().any(1), 2]
    if len(wrong):
        where = located(f"for {len(wrong)} of {len(found)} images", wrong.tolist())
        raise NonFinite(
            f"the model gives nan {where}: its weights have diverged or are damaged; train with a lower"
            " train.lr, or use another copy"
        )
    order = torch.from_numpy(np.argsort(columns[:, 0].numpy(), kind="stable"))
    return found[order], columns[order, 1], columns[order, 2]


def unreadable(task: Task, part: str = "training") -> RunError:
    """Return the error that ends a run if none of a task's training, or test, images can be read."""
    return RunError(f"not one {part} image of {task.name} can be read: see the skipped images in run.log")


def some(batches: Iterable[Batch], task: Task) -> Iterator[Batch]:
    """Yield batches of a task's training images. Raises RunError where there was none."""
    batch = None
    for batch in batches:
        yield batch
    if batch is None:
        raise unreadable(task)
