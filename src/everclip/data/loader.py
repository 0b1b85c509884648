"""Load batches of new and memory images, in an order that is a pure function of (seed, stage, phase, epoch, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.batch import Batch, Phase
from everclip.data.cache.activations import Activations
from everclip.data.cache.views import VIEWS
from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.distributed import collectives
from everclip.errors import UserError
from everclip.seeding import generator


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a batch that a process has read.

    Args:
        images, current, key: of the whole batch, broken images too.
        good: which of this process's images could be read; ``first`` and ``second`` are their pictures.
    """

    images: ImageSet
    current: NDArray[np.bool_]
    key: tuple[int, int, int, int]
    views: int
    good: NDArray[np.bool_]
    first: Tensor
    second: Tensor | None


_Order = list[NDArray[np.int64]]
_Made = TypeVar("_Made")

_TWO_VIEWS = "the method compares two views of each image, and"


def check_augment(augment: str) -> None:
    """Refuse an augmentation that makes two views of an image the same. Raises UserError."""
    if augment == "none":
        raise UserError(f"{_TWO_VIEWS} train.augment=none makes them the same: use train.augment=shift_flip")


class Loader:
    """Make batches from images.

    Args:
        pixels: decoded images.
        activations: kept rows, which take the place of the pictures.
        batch_size: at most; an epoch is cut into batches whose sizes differ by one at most, so that no contrastive
            loss meets a last batch much smaller than the rest.
        augment: ``none``, or the name of a view in ``VIEWS``.
        seed: of the order and of the augmentation.
        light: of ``collectives.Share``.
    """

    def __init__(
        self,
        pixels: Pixels,
        batch_size: int,
        augment: str = "none",
        seed: int = 0,
        activations: Activations | None = None,
        light: bool = False,
    ) -> None:
        self.pixels = pixels
        self.activations = activations
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.light = light

    @property
    def cache_bytes(self) -> int:
        """Largest number of bytes of kept activations; 0 where none are kept."""
        return 0 if self.activations is None else self.activations.most * self.activations.rows.row_bytes

    @property
    def kept(self) -> Activations | None:
        """The rows that training sees in place of pictures; None where it sees pictures."""
        return self.activations if self.activations is not None and self.activations.views else None

    def prepare(self, images: ImageSet, epoch: int = 0, views: int = 1) -> None:
        """Compute what training sees of these images in an epoch of a phase, where it is kept.

        Args:
            views: of each image; 0 for the plain picture, which is all that is read where nothing trains.
        """
        if self.kept is not None:
            self.kept.fill(images, self.kept.drawn(epoch, views) if views else [0])

    def drop(self, ids: NDArray[np.int64]) -> None:
        """Free what is kept of images that no later stage sees."""
        if self.activations is not None:
            self.activations.drop(ids)

    def steps_per_epoch(self, images: int) -> int:
        """Return the number of batches in one pass over this many images."""
        return -(-images // self.batch_size)

    def order(self, images: ImageSet, phase: Phase, key: tuple[int, int, int]) -> _Order:
        """Return positions of each batch of one epoch; ``key`` is (stage, phase index, epoch)."""
        rng = generator(self.seed, "order", *key)
        steps = self.steps_per_epoch(len(images))
        if phase.sampler != "uniform":
            labels, counts = np.unique(images.labels, return_counts=True)
            members = np.split(np.argsort(images.labels, kind="stable"), np.cumsum(counts)[:-1])
            of = dict(zip(labels.tolist(), members, strict=True))
            return [self._balanced(of, rng, phase.sampler == "class_repeated") for _ in range(steps)]
        return np.array_split(rng.permutation(len(images)), steps)

    def _balanced(
        self, members: Mapping[int, NDArray[np.int64]], rng: np.random.Generator, again: bool
    ) -> NDArray[np.int64]:
        """Return a batch of uniformly drawn classes, equally many images of each; no image twice, unless ``again``.

        Args:
            members: positions of each class's images, the classes in the order of their labels.
        """
        each = 2 if self.batch_size >= 4 else 1
        drawn = rng.permutation([*members])[: max(1, self.batch_size // each)]
        each, found = self.batch_size // len(drawn), list[NDArray[np.int64]]()
        for label in drawn.tolist():
            own = members[label]
            rounds = -(-each // len(own)) if again else 1
            found.append(np.concatenate([rng.permutation(own) for _ in range(rounds)])[:each])
        return np.concatenate(found)

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
        """Yield ``steps`` training batches of a phase, epoch after epoch; broken images are left out of theirs. Raises
        UserError where the two views asked for would be the same.

        Args:
            images: new and memory images of the stage.
            current: bool ``[n]``: which of them are new.
            stage, index: of the task, and of the phase in it.
            start: how many batches are skipped, as they are done already; the others do not depend on it.
        """
        if phase.views == 2:
            self._check_views()
        which = {"mixed": np.ones_like(current), "new": current, "memory": ~current}[phase.data]
        images, current = images.select(which), current[which]
        per_epoch, begun = self.steps_per_epoch(len(images)), start
        while start < steps:
            epoch, first = divmod(start, per_epoch)
            order = self.order(images, phase, (stage, index, epoch))[: first + steps - start]
            # groups are computed whole: images drawn at random would compute them time and again
            drawn = np.concatenate(order[first:]) if phase.sampler == "uniform" else np.arange(len(images))
            self.prepare(images.select(drawn), epoch, phase.views)
            # a long wait hides that a process hangs: without anything to compute, the first step's is enough
            if start == begun or self.kept is not None:
                collectives.wait()

            def make(step: int, order: _Order = order, epoch: int = epoch) -> tuple[int, _Part]:
                where, key = order[step], (stage, index, epoch, step)
                return step, self._part(images.select(where), current[where], key, phase.views)

            for step, part in self._ahead(make, range(first, len(order)), self.kept):
                if len(batch := self._whole(part)):
                    yield replace(batch, number=epoch * per_epoch + step)
            start = (epoch + 1) * per_epoch

    def _check_views(self) -> None:
        """Refuse two views of an image that would be the same."""
        check_augment(self.augment)
        if self.kept is not None and self.kept.views == 1:
            raise UserError(f"{_TWO_VIEWS} one is kept: use cache.views=4, or cache.trunk=off")

    def _part(
        self,
        images: ImageSet,
        current: NDArray[np.bool_],
        key: tuple[int, int, int, int],
        views: int,
        own: slice | None = None,
    ) -> _Part:
        """Return the pictures of a batch that are this process's, or those in ``own``, augmented as in all of it."""
        own = collectives.own(len(images)) if own is None else own
        mine, second = images.select(np.arange(own.start, own.stop)), None
        if self.kept is not None:
            drawn = self.kept.drawn(key[2], views)
            first, good = self.kept.load(mine, drawn[0])
            if views == 2:
                second = self.kept.load(mine, drawn[1])[0]
            return _Part(images, current, key, views, good, first, second)
        pictures, good = self.pixels.load(mine.rows)
        first, second = pictures, pictures if views == 2 else None
        if self.augment != "none" and len(pictures):
            view = VIEWS[self.augment]
            which = np.zeros(len(images), dtype=bool)
            which[own] = good
            first = view(pictures, generator(self.seed, "augment", *key), which)
            if views == 2:
                second = view(pictures, generator(self.seed, "second view", *key), which)
        return _Part(images, current, key, views, good, first, second)

    def _whole(self, part: _Part) -> Batch:
        """Return the batch of a part. Where a process would have no images, each process takes all of them."""
        images, good, share = part.images, part.good, None
        if collectives.size() > 1:
            good = collectives.gathered_mask(part.good, len(images))
            if not good.all():
                self.agree()
            counts = tuple(int(good[own].sum()) for own in collectives.parts(len(images)))
            if min(counts):
                share = collectives.Share(counts, self.light)
            else:
                part = self._part(images, part.current, part.key, part.views, slice(0, len(images)))
                good = part.good
        batch = self._batch(part.first, images, part.current, good, part.key)
        batch = replace(batch, second=part.second, share=share)
        if images.captions is None:
            return batch
        said = images.captions.draw(images.rows[good], images.ids[good], self.seed, part.key[:3])
        which, pairs = map(torch.from_numpy, (said.which, said.pairs))
        return replace(batch, texts=said.texts, which=which, pairs=pairs)

    def agree(self) -> None:
        """Tell every process which images any of them has found broken."""
        for skipped in collectives.told(self.pixels.skipped()):
            self.pixels.mark_broken(skipped)

    def plain(self, images: ImageSet, batch_size: int = 128, shared: bool = False) -> Iterator[Batch]:
        """Yield the images in their order, once, without augmentation; broken ones are left out.

        Args:
            shared: whether processes share the batches, of which each gets every ``collectives.size()``-th.
        """
        first, each = (collectives.rank(), collectives.size()) if shared else (0, 1)
        steps = range(first, -(-len(images) // batch_size), each)
        where = [np.arange(step * batch_size, min((step + 1) * batch_size, len(images))) for step in steps]
        if self.activations is not None and where:
            self.activations.fill(images.select(np.concatenate(where)))

        def make(step: int) -> Batch:
            part = images.select(where[(step - first) // each])
            kept = self.activations
            found, good = self.pixels.load(part.rows) if kept is None else kept.load(part)
            return self._batch(found, part, np.ones_like(good), good, (0, 0, 0, step))

        yield from (batch for batch in self._ahead(make, steps, self.activations) if len(batch))

    def _batch(
        self,
        found: Tensor,
        images: ImageSet,
        current: NDArray[np.bool_],
        good: NDArray[np.bool_],
        key: tuple[int, int, int, int],
    ) -> Batch:
        """Return a batch of the images that are ``good``, with what was ``found`` for them."""
        columns = (images.labels[good], images.domains[good], images.ids[good], current[good])
        return Batch(found, *map(torch.from_numpy, columns), key=key, seed=self.seed)

    def _ahead(self, make: Callable[[int], _Made], steps: range, kept: Activations | None) -> Iterator[_Made]:
        """Yield what is made, decoding the next one while this one is used; from memory that would gain nothing."""
        in_memory = kept.rows.at_hand if kept is not None else self.pixels.cached
        if in_memory or not self.pixels.workers:
            yield from map(make, steps)
            return
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(make, steps[0]) if steps else None
            for place in range(len(steps)):
                assert future is not None
                made = future.result()
                future = pool.submit(make, steps[place + 1]) if place + 1 < len(steps) else None
                yield made
