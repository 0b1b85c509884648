"""Batches of new and memory images, in an order that is a pure function of (seed, stage, phase, epoch, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.activations import Activations
from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.data.views import shift_flip
from everclip.errors import UserError
from everclip.seeding import generator


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step sees.

    Args:
        images: uint8 pictures ``[b, 3, s, s]``, or in their place activations ``[b, ...]`` of the tower's frozen part;
            ``Clip.normalise`` takes both.
        labels, domains, ids: int64 ``[b]``, as in ImageSet.
        current: bool ``[b]``: from the current task rather than from the memory.
        second: another augmented view of each image, in phases with two views.
        key: (stage, phase, epoch, step), for random draws that must repeat exactly.
        seed: the run's seed of such draws.
        number: how many batches of the phase come before it.
    """

    images: UInt8[Tensor, "b 3 s s"] | Float[Tensor, "b ..."]
    labels: Int64[Tensor, " b"]
    domains: Int64[Tensor, " b"]
    ids: Int64[Tensor, " b"]
    current: Bool[Tensor, " b"]
    second: UInt8[Tensor, "b 3 s s"] | Float[Tensor, "b ..."] | None = None
    key: tuple[int, int, int, int] = (0, 0, 0, 0)
    seed: int = 0
    number: int = 0

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
        activations: kept rows, which take the place of the pictures.
        batch_size: at most; an epoch is cut into batches whose sizes differ by one at most, so that no contrastive
            loss meets a last batch of one.
        augment: ``none`` or ``shift_flip`` (a shift of up to an eighth of the side, mirrored half of the time).
        seed: of the order and of the augmentation.
    """

    def __init__(
        self,
        pixels: Pixels,
        batch_size: int,
        augment: str = "none",
        seed: int = 0,
        activations: Activations | None = None,
    ) -> None:
        self.pixels = pixels
        self.activations = activations
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed

    @property
    def cache_bytes(self) -> int:
        """Bytes of kept activations at most; 0 where none are kept."""
        return 0 if self.activations is None else self.activations.most * self.activations.rows.row_bytes

    def prepare(self, images: ImageSet) -> None:
        """Compute what training sees of these images now, where it is kept."""
        if self.activations is not None:
            self.activations.fill(images, self.activations.training_views)

    def drop(self, ids: NDArray[np.int64]) -> None:
        """Free what is kept of images that no later stage sees."""
        if self.activations is not None:
            self.activations.drop(ids)

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
        self,
        images: ImageSet,
        current: NDArray[np.bool_],
        phase: Phase,
        stage: int,
        index: int,
        steps: int,
        start: int = 0,
    ) -> Iterator[Batch]:
        """``steps`` training batches of a phase, epoch after epoch; broken images are left out of theirs.

        Args:
            images: new and memory images of the stage.
            current: bool ``[n]``: which of them are new.
            stage, index: of the task, and of the phase in it.
            start: how many of them are left out, as they are done already; the others do not depend on it.

        Raises:
            UserError: two views are wanted, and without augmentation they would be one.
        """
        if phase.views == 2:
            self._check_views()
        which = {"mixed": np.ones_like(current), "new": current, "memory": ~current}[phase.data]
        images, current = images.select(which), current[which]
        self.prepare(images)
        per_epoch = self.steps_per_epoch(len(images))
        orders: dict[int, list[NDArray[np.int64]]] = {}

        def make(step: int) -> Batch:
            epoch, within = divmod(step, per_epoch)
            if epoch not in orders:
                orders.clear()
                orders[epoch] = self.order(images, phase, (stage, index, epoch))
            where = orders[epoch][within]
            part, key = images.select(where), (stage, index, epoch, within)
            if self.activations is not None:
                return self._drawn(self.activations, part, current[where], key, phase.views)
            return self._augmented(self._batch(part, current[where], key), phase.views)

        for number, batch in enumerate(self._ahead(make, start, steps), start):
            if len(batch):
                yield replace(batch, number=number)

    def _check_views(self) -> None:
        """Refuse two views of an image that would be one."""
        if self.augment == "none":
            raise UserError(
                "the method compares two views of each image, and train.augment=none makes them the same:"
                " write train.augment=shift_flip"
            )
        if self.activations is not None and self.activations.views == 1:
            raise UserError(
                "the method compares two views of each image, and one is kept: write cache.views=4, or cache.trunk=off"
            )

    def _drawn(
        self,
        activations: Activations,
        images: ImageSet,
        current: NDArray[np.bool_],
        key: tuple[int, int, int, int],
        views: int,
    ) -> Batch:
        """A batch of kept views, one drawn of each image, or two different ones."""
        first, second = activations.drawn(len(images), generator(self.seed, "fixed view", *key))
        batch = self._batch(images, current, key, first)
        return replace(batch, second=activations.load(images, second)[0]) if views == 2 else batch

    def _augmented(self, batch: Batch, views: int) -> Batch:
        """The batch with augmented pictures, the second view from a random stream of its own."""
        if not len(batch):
            return batch
        first, second = batch.images, batch.images
        if self.augment == "shift_flip":
            first = shift_flip(first, batch.rng("augment"))
            second = shift_flip(second, batch.rng("second view")) if views == 2 else second
        return replace(batch, images=first, second=second if views == 2 else None)

    def plain(self, images: ImageSet, batch_size: int = 128) -> Iterator[Batch]:
        """The images in their order, once, without augmentation; broken ones are left out."""
        if self.activations is not None:
            self.activations.fill(images)

        def make(step: int) -> Batch:
            part = images.select(np.arange(step * batch_size, min((step + 1) * batch_size, len(images))))
            return self._batch(part, np.ones(len(part), dtype=bool), (0, 0, 0, step))

        yield from (batch for batch in self._ahead(make, 0, -(-len(images) // batch_size)) if len(batch))

    def _batch(
        self,
        images: ImageSet,
        current: NDArray[np.bool_],
        key: tuple[int, int, int, int],
        views: NDArray[np.int64] | None = None,
    ) -> Batch:
        """The images that can be read, or of each the kept view asked for (default: the plain one)."""
        if self.activations is not None:
            pictures, good = self.activations.load(images, views)
        else:
            pictures, good = self.pixels.load(images.rows)
        columns = (images.labels[good], images.domains[good], images.ids[good], current[good])
        return Batch(pictures, *(torch.from_numpy(column) for column in columns), key=key, seed=self.seed)

    def _ahead(self, make: Callable[[int], Batch], start: int, steps: int) -> Iterator[Batch]:
        """Batches, the next one being decoded while this one is used; from memory that would gain nothing."""
        if self.activations.rows.at_hand if self.activations is not None else self.pixels.cached:
            yield from map(make, range(start, steps))
            return
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(make, start) if start < steps else None
            for step in range(start, steps):
                assert future is not None
                batch = future.result()
                future = pool.submit(make, step + 1) if step + 1 < steps else None
                yield batch
