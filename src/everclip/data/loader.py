"""Batches of new and memory images, in an order that is a pure function of (seed, stage, phase, epoch, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.seeding import generator


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step sees.

    Args:
        images: uint8 ``[b, 3, s, s]``.
        labels, domains, ids: int64 ``[b]``, as in ImageSet.
        current: bool ``[b]``: from the current task rather than from the memory.
        second: another augmented view of each image, in phases with two views.
        key: (stage, phase, epoch, step), for random draws that must repeat exactly.
        seed: the run's seed of such draws.
    """

    images: UInt8[Tensor, "b 3 s s"]
    labels: Int64[Tensor, " b"]
    domains: Int64[Tensor, " b"]
    ids: Int64[Tensor, " b"]
    current: Bool[Tensor, " b"]
    second: UInt8[Tensor, "b 3 s s"] | None = None
    key: tuple[int, int, int, int] = (0, 0, 0, 0)
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def rng(self, stream: str) -> np.random.Generator:
        """The generator of one stream at this step."""
        return generator(self.seed, stream, *self.key)


@dataclass(frozen=True)
class Phase:
    """A training stage of a method.

    Args:
        name: shown in the log.
        epochs: overrides ``train.epochs``; None takes the config's epochs or steps.
        sampler: ``uniform`` over images, or ``class_balanced``: classes uniformly, then images of the class.
        data: which images it trains on: new and memory, new alone, or memory alone.
        views: augmented views of each image: one, or two (``Batch.second``).
        train: values of ``[train]`` for this phase alone, such as ``{"lr_head": 0.1, "weight_decay": 0.0}``.
    """

    name: str = "train"
    epochs: int | None = None
    sampler: Literal["uniform", "class_balanced"] = "uniform"
    data: Literal["mixed", "new", "memory"] = "mixed"
    views: Literal[1, 2] = 1
    train: Mapping[str, float | None] = field(default_factory=dict)


class Loader:
    """Makes batches from images.

    Args:
        pixels: decoded images.
        batch_size: at most; an epoch is cut into batches whose sizes differ by one at most, so that no contrastive
            loss meets a last batch of one.
        augment: ``none`` or ``shift_flip`` (a shift of up to an eighth of the side, mirrored half of the time).
        seed: of the order and of the augmentation.
    """

    def __init__(self, pixels: Pixels, batch_size: int, augment: str = "none", seed: int = 0) -> None:
        self.pixels = pixels
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed

    def steps_per_epoch(self, images: int) -> int:
        """Batches in one pass over this many images."""
        return -(-images // self.batch_size)

    def order(self, images: ImageSet, phase: Phase, key: tuple[int, int, int]) -> list[NDArray[np.int64]]:
        """Positions of each batch of one epoch; ``key`` is (stage, phase index, epoch)."""
        rng = generator(self.seed, "order", *key)
        steps = self.steps_per_epoch(len(images))
        if phase.sampler == "class_balanced":
            return [self._balanced(images.labels, rng) for _ in range(steps)]
        return np.array_split(rng.permutation(len(images)), steps)

    def _balanced(self, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """A batch of classes drawn uniformly, as many images of each, no image twice."""
        classes = np.unique(labels)
        each = 2 if self.batch_size >= 4 else 1
        drawn = rng.permutation(classes)[: max(1, self.batch_size // each)]
        each = self.batch_size // len(drawn)
        return np.concatenate(
            [rng.permutation(np.flatnonzero(labels == label))[:each] for label in drawn.tolist()]
        )

    def batches(
        self, images: ImageSet, current: NDArray[np.bool_], phase: Phase, stage: int, index: int, steps: int
    ) -> Iterator[Batch]:
        """``steps`` training batches of a phase, epoch after epoch; broken images are left out of theirs.

        Args:
            images: new and memory images of the stage.
            current: bool ``[n]``: which of them are new.
            stage, index: of the task, and of the phase in it.

        Raises:
            UserError: two views are wanted, and without augmentation they would be one.
        """
        if phase.views == 2 and self.augment == "none":
            raise UserError(
                "the method compares two views of each image, and train.augment=none makes them the same:"
                " write train.augment=shift_flip"
            )
        which = {"mixed": np.ones_like(current), "new": current, "memory": ~current}[phase.data]
        images, current = images.select(which), current[which]
        per_epoch = self.steps_per_epoch(len(images))
        orders: dict[int, list[NDArray[np.int64]]] = {}

        def make(step: int) -> Batch:
            epoch, within = divmod(step, per_epoch)
            if epoch not in orders:
                orders.clear()
                orders[epoch] = self.order(images, phase, (stage, index, epoch))
            where = orders[epoch][within]
            batch = self._batch(images.select(where), current[where], (stage, index, epoch, within))
            return self._augmented(batch, phase.views)

        yield from (batch for batch in self._ahead(make, steps) if len(batch))

    def _augmented(self, batch: Batch, views: int) -> Batch:
        """The batch with augmented pictures, the second view from a random stream of its own."""
        if not len(batch):
            return batch
        first, second = batch.images, batch.images
        if self.augment == "shift_flip":
            first = _shift_flip(first, batch.rng("augment"))
            second = _shift_flip(second, batch.rng("second view")) if views == 2 else second
        return replace(batch, images=first, second=second if views == 2 else None)

    def plain(self, images: ImageSet, batch_size: int = 128) -> Iterator[Batch]:
        """The images in their order, once, without augmentation; broken ones are left out."""

        def make(step: int) -> Batch:
            part = images.select(np.arange(step * batch_size, min((step + 1) * batch_size, len(images))))
            return self._batch(part, np.ones(len(part), dtype=bool), (0, 0, 0, step))

        yield from (batch for batch in self._ahead(make, -(-len(images) // batch_size)) if len(batch))

    def _batch(self, images: ImageSet, current: NDArray[np.bool_], key: tuple[int, int, int, int]) -> Batch:
        pictures, good = self.pixels.load(images.rows)
        columns = (images.labels[good], images.domains[good], images.ids[good], current[good])
        return Batch(pictures, *(torch.from_numpy(column) for column in columns), key=key, seed=self.seed)

    def _ahead(self, make: Callable[[int], Batch], steps: int) -> Iterator[Batch]:
        """Batches, the next one being decoded while this one is used; from memory that would gain nothing."""
        if self.pixels.cached:
            yield from map(make, range(steps))
            return
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(make, 0) if steps else None
            for step in range(steps):
                assert future is not None
                batch = future.result()
                future = pool.submit(make, step + 1) if step + 1 < steps else None
                yield batch


def _shift_flip(images: UInt8[Tensor, "b 3 s s"], rng: np.random.Generator) -> UInt8[Tensor, "b 3 s s"]:
    """Each picture shifted by up to an eighth of its side (edges mirrored) and maybe flipped."""
    count, side = len(images), images.shape[-1]
    pad = max(1, side // 8)
    shifts = torch.from_numpy(rng.integers(0, 2 * pad + 1, size=(2, count)))
    flips = torch.from_numpy(rng.random(count) < 0.5)
    # Index arithmetic instead of padding: coordinates mirrored at the edges, one gather for the whole batch.
    base = torch.arange(side)
    rows = _mirror(base + shifts[0, :, None] - pad, side)
    columns = _mirror(base + shifts[1, :, None] - pad, side)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    picture = torch.arange(count)[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    return images[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirror(index: Int64[Tensor, "b s"], side: int) -> Int64[Tensor, "b s"]:
    """Coordinates reflected into [0, side)."""
    index = index.abs()
    return torch.where(index >= side, 2 * side - 2 - index, index)
