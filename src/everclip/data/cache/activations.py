"""Keep the output of an image tower's frozen trunk for each image, computed once, in place of the pictures.

Images are computed in groups that depend on the data alone: those of one part, class and domain, in the order of their
ids, at most ``GROUP`` at a time. A processor's last bit depends on how many rows it computes at once; with such groups
a row is the same whichever stage, run or resume first asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.cache.rows import Key, Rows, Shared
from everclip.data.cache.views import fixed_view
from everclip.data.images import ImageSet
from everclip.data.inventory import silent
from everclip.data.pixels import Pixels
from everclip.seeding import hash64

GROUP = 64
"""Rows computed together, at most."""
AT_ONCE = 16
"""Number of groups after which other processes get a turn at a shared file."""

Begin = Callable[[int], Callable[[int], object]]
"""Called with the number of images to compute; returns a function to call with the number just done."""


@dataclass(eq=False)
class Activations:
    """Rows of the images of a run, computed when they are first asked for.

    Args:
        pixels: the pictures.
        encode: uint8 pictures to activations.
        rows: what they are kept in.
        views: number of augmented views kept of a training image, which epochs see in turn; with 1, training sees the
            plain picture; with 0, no training rows are kept and training sees pictures.
        train, test: all images of the run, in parts that no group spans.
        most: rows that a run keeps at any time, as planned.
        begin: is told when images are to be computed.
        training: a context for computing the rows of ``train``: the precision that towers train in.
    """

    pixels: Pixels
    encode: Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b ..."]]
    rows: Rows
    views: int
    train: Sequence[ImageSet]
    test: Sequence[ImageSet]
    most: int = 0
    begin: Begin = lambda total: silent
    training: Callable[[], AbstractContextManager[None]] = nullcontext
    _groups: list[ImageSet] = field(init=False)
    _trained: int = field(init=False)
    _group_of: dict[int, int] = field(init=False)
    _contents: dict[int, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        trained = grouped(self.train)
        self._groups, self._trained = trained + grouped(self.test), len(trained)
        self._group_of = {
            sample: number for number, group in enumerate(self._groups) for sample in group.ids.tolist()
        }

    def drawn(self, epoch: int, count: int = 1) -> list[int]:
        """Return the ``count`` views that an epoch of a phase sees of each image: the next ones, in a cycle.

        How an image is shifted and mirrored in a view is drawn for each image, so one number serves the whole epoch,
        and a view comes back only once all others have been seen.
        """
        if self.views == 1:
            return [0] * count
        return [1 + (epoch * count + place) % self.views for place in range(count)]

    def fill(self, images: ImageSet, views: Sequence[int] = (0,)) -> None:
        """Compute the rows that some views of images still lack; broken images are found and left out."""
        self._identify(images)
        images = self.pixels.readable(images)
        wanted = frozenset(images.ids.tolist())
        missing = sorted(
            {
                self._group_of[sample]
                for sample in wanted
                if not all(self._has(sample, view) for view in views)
            }
        )
        if not missing:
            return
        step = self.begin(sum(len(self._groups[number]) for number in missing))
        for start in range(0, len(missing), AT_ONCE):
            with self.rows.filling():
                for number in missing[start : start + AT_ONCE]:
                    with self.training() if number < self._trained else nullcontext():
                        self._compute(self._groups[number], views, wanted)
                    step(len(self._groups[number]))

    def load(self, images: ImageSet, view: int = 0) -> tuple[Float[Tensor, "b ..."], NDArray[np.bool_]]:
        """Return the rows, which must exist, of the images that can be read, in order, and the mask ``[len(images)]``
        of these images.

        Args:
            view: of all of them; default: the plain picture.
        """
        good = self.pixels.is_good(images.rows)
        return self.rows.read([self._key(sample, view) for sample in images.ids[good].tolist()]), good

    def drop(self, ids: NDArray[np.int64]) -> None:
        """Free the rows of images that no later stage sees."""
        self.rows.drop(ids.tolist())

    def _key(self, sample: int, view: int) -> Key:
        return sample, view, self._contents.get(sample, 0)

    def _has(self, sample: int, view: int) -> bool:
        return self.rows.has(self._key(sample, view))

    def _lacking(self, group: ImageSet, views: Sequence[int], wanted: Collection[int]) -> list[int]:
        """Return the views in which a group lacks the row of a wanted image that can be read."""
        ids = [sample for sample in self.pixels.readable(group).ids.tolist() if sample in wanted]
        return [view for view in views if not all(self._has(sample, view) for sample in ids)]

    def _identify(self, images: ImageSet) -> None:
        """Hash the encoded images where a shared cache identifies rows by these hashes."""
        if isinstance(self.rows, Shared):
            known = self._contents
            fresh = images.select(np.array([s not in known for s in images.ids.tolist()], dtype=bool))
            for sample, content in zip(fresh.ids.tolist(), self.pixels.hashes(fresh.rows), strict=True):
                if content is not None:
                    self._contents[sample] = content

    @torch.no_grad()
    def _compute(self, group: ImageSet, views: Sequence[int], wanted: Collection[int]) -> None:
        """Compute a whole group; a private cache keeps only the wanted rows, a shared one all."""
        if not self._lacking(group, views, wanted):  # another process has come first
            return
        self._identify(group)
        pictures, good = self.pixels.load(group.rows)
        ids = group.ids[good].tolist()
        shared = isinstance(self.rows, Shared)
        kept = [place for place, sample in enumerate(ids) if shared or sample in wanted]
        for view in self._lacking(group, views, wanted):  # none, where only broken images had no row
            hidden = self.encode(fixed_view(pictures, ids, view)).float().cpu()
            self.rows.write([self._key(ids[place], view) for place in kept], hidden[kept])


def grouped(parts: Iterable[ImageSet]) -> list[ImageSet]:
    """Return the images of each part, class and domain in the order of their ids, at most ``GROUP`` together."""
    groups: list[ImageSet] = []
    for part in parts:
        for where in part.kinds():
            where = where[np.argsort(part.ids[where])]
            groups += [part.select(where[start : start + GROUP]) for start in range(0, len(where), GROUP)]
    return groups


def fingerprint(parts: Iterable[ImageSet]) -> str:
    """Return a hash of the groups of images: with other groups a row's last bit may differ."""
    return f"{hash64(*(group.ids.tolist() for group in grouped(parts))):016x}"
