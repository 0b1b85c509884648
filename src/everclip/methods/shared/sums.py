"""Keep sums over the features of images learned: what every closed form is solved from, in methods and in updates.

    G = sum_i x_i x_i'     Q_k = sum_{i of class k} x_i     n_k = number of images of class k

No image is needed to solve them, or to add to them. If the ids of their images are kept (``ids``), an image counts once
and can be taken out again, up to the rounding of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import one_hot, pad

from everclip.methods.shared.closed_form import oas, shrunk, within_class

MOST_TARGETS = 2**24
"""Size of the largest matrix of one-hot rows, in numbers: of many images and classes it would fill the memory."""


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


def _to_diagonal(covariance: Float64[Tensor, "m m"], count: int) -> Float64[Tensor, "m m"]:
    """Return a covariance, estimated from ``count`` images, with its correlations shrunk to 0."""
    spread = covariance.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    correlations = covariance / spread[:, None] / spread
    return shrunk(correlations, oas(correlations, count), 1.0) * spread[:, None] * spread


def _first(ids: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Return which ids occur for the first time."""
    first = torch.zeros(len(ids), dtype=torch.bool)
    first[np.unique(ids.numpy(), return_index=True)[1]] = True
    return first


def halved(gram: Float64[Tensor, "m m"]) -> Float64[Tensor, " h"]:
    """Return the upper half of G with its diagonal, row by row: G is symmetric."""
    return gram[*torch.triu_indices(*gram.shape, device=gram.device)]


def whole(half: Tensor, width: int) -> Tensor:
    """Return the G of which ``halved`` made this half; anything that is not such a half as it is."""
    if half.shape != (width * (width + 1) // 2,):
        return half
    gram = half.new_zeros(width, width)
    rows, columns = torch.triu_indices(width, width, device=half.device)
    gram[rows, columns] = gram[columns, rows] = half
    return gram


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums. All but ``add_`` leave them as they are, and return others.

    Args:
        gram, sums, counts: G (empty where second moments are not kept), Q and n; rows of Q are labels.
        ids, labels: of the images in them, where these are kept; on the CPU.
    """

    gram: Float64[Tensor, "m m"]
    sums: Float64[Tensor, "c d"]
    counts: Int64[Tensor, " c"]
    ids: Int64[Tensor, " n"] = field(default_factory=_none)
    labels: Int64[Tensor, " n"] = field(default_factory=_none)

    @classmethod
    def empty(
        cls, classes: int, width: int, second_moments: bool = True, device: torch.device | None = None
    ) -> Sums:
        """Make sums of no image."""
        moments = width if second_moments else 0
        return cls(
            torch.zeros(moments, moments, dtype=torch.float64, device=device),
            torch.zeros(classes, width, dtype=torch.float64, device=device),
            torch.zeros(classes, dtype=torch.int64, device=device),
        )

    def add_(
        self,
        rows: Float64[Tensor, "b d"],
        labels: Int64[Tensor, " b"],
        weights: Float64[Tensor, " b"] | None = None,
        sign: int = 1,
    ) -> None:
        """Add images in place (-1: take out), each as often as its weight says (``counts`` excepted)."""
        roots = None if weights is None else weights.sqrt()[:, None]
        rows = rows if roots is None else roots * rows
        if self.gram.numel():
            self.gram.addmm_(rows.T, rows, alpha=sign)
        # matrix products, as adding by index would depend on the order of a GPU's threads
        step = MOST_TARGETS // max(1, len(self.counts))
        for part in (slice(start, start + step) for start in range(0, len(rows), step)):
            targets = self.targets(labels[part])
            self.counts.add_(targets.sum(0).long(), alpha=sign)
            targets = targets if roots is None else roots[part] * targets
            self.sums.addmm_(targets.T, rows[part], alpha=sign)

    def targets(self, labels: Int64[Tensor, " b"]) -> Float64[Tensor, "b c"]:
        """Return one-hot rows."""
        return one_hot(labels, len(self.counts)).double()

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.sums.shape[1]

    @property
    def learned(self) -> Bool[Tensor, " c"]:
        """The classes that have images in the sums."""
        return self.counts > 0

    @property
    def means(self) -> Float64[Tensor, "c d"]:
        """Class means; 0 for a class without images."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @property
    def scatter(self) -> Float64[Tensor, "m m"]:
        """Scatter within classes."""
        return within_class(self.gram, self.sums, self.counts)

    def widened(self, classes: int) -> Sums:
        """Return the same with rows for more classes."""
        more = classes - len(self.counts)
        return replace(self, sums=pad(self.sums, (0, 0, 0, more)), counts=pad(self.counts, (0, more)))

    def columns(self, part: slice) -> Sums:
        """Return the sums of some columns of the features."""
        return replace(self, gram=self.gram[part, part], sums=self.sums[:, part])

    def plus(
        self, features: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], ids: Int64[Tensor, " b"]
    ) -> Sums:
        """Add more images, each once; those that are in already are not counted again."""
        fresh = ~torch.isin(ids, self.ids) & _first(ids)
        rows, labels, ids = features[fresh].double(), labels[fresh], ids[fresh]
        return replace(
            self._shifted(rows, labels, 1),
            ids=torch.cat([self.ids, ids]),
            labels=torch.cat([self.labels, labels]),
        )

    def minus(
        self, features: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], ids: Int64[Tensor, " b"]
    ) -> Sums:
        """Take out some images, each once; those that are not in the sums are ignored."""
        there = torch.isin(ids, self.ids) & _first(ids)
        left = ~torch.isin(self.ids, ids[there])
        made = self._shifted(features[there].double(), labels[there], -1)
        return replace(made, ids=self.ids[left], labels=self.labels[left])

    def _shifted(self, rows: Float64[Tensor, "b d"], labels: Int64[Tensor, " b"], sign: int) -> Sums:
        made = replace(self, gram=self.gram.clone(), sums=self.sums.clone(), counts=self.counts.clone())
        made.add_(rows, labels, sign=sign)
        return made

    def without(self, part: Sums) -> Sums:
        """Leave out the images of other sums; the result does not keep ids."""
        return Sums(self.gram - part.gram, self.sums - part.sums, self.counts - part.counts)

    def without_classes(
        self,
        gone: Sequence[int],
        known: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        ids: Int64[Tensor, " n"],
    ) -> Sums:
        """Take out classes whose images are not all at hand: G is made anew from what is left.

            G = sum_i x_i x_i' + sum_k R_k R_k' / r_k + (r - c) V

        with the known images i, and the sums R_k and numbers r_k of the r other images of c classes; V is the variance
        within classes of the known images, shrunk to its diagonal, as these are often fewer than the features.
        Nothing of the classes taken out goes into the result.

        Args:
            known, labels, ids: features of images of the other classes, and their labels before the removal.
        """
        keep, place = self._staying(gone)
        there = keep[self.labels]
        left, moved = self.ids[there], place[self.labels[there]]
        labels = place[labels]
        empty, inside = Sums.empty(int(keep.sum()), self.width), torch.isin(ids, left)
        every = empty.plus(known, labels, ids)
        part = empty.plus(known[inside], labels[inside], ids[inside])
        whole = Sums(part.gram, self.sums[keep], self.counts[keep], left, moved)
        rest = whole.without(part)
        more, free = (max(0, int(one.counts.sum() - one.learned.sum())) for one in (rest, every))
        gram = part.gram + rest.means.T @ rest.sums
        if more and free:
            gram = gram + more * _to_diagonal(every.scatter / free, free)
        return replace(whole, gram=gram)

    def dropped(self, gone: Sequence[int]) -> Sums:
        """Leave out the rows of classes whose images have been taken out already."""
        assert not self.counts[list(gone)].any()
        keep, place = self._staying(gone)
        return replace(self, sums=self.sums[keep], counts=self.counts[keep], labels=place[self.labels])

    def _staying(self, gone: Sequence[int]) -> tuple[Bool[Tensor, " c"], Int64[Tensor, " c"]]:
        """Return which classes stay without ``gone``, and the labels that they have then."""
        keep = torch.ones(len(self.counts), dtype=torch.bool)
        keep[list(gone)] = False
        return keep, keep.cumsum(0) - 1

    def merged(self, place: Int64[Tensor, " c"], classes: int) -> Sums:
        """Give each class the label ``place[label]`` of ``classes`` labels; classes with the same label become one."""
        assert bool((place >= 0).all())
        sums = self.sums.new_zeros(classes, self.width).index_add_(0, place, self.sums)
        counts = self.counts.new_zeros(classes).index_add_(0, place, self.counts)
        return replace(self, sums=sums, counts=counts, labels=place[self.labels])

    def save(self, file: Path) -> None:
        """Write the sums, with the upper half of G alone. Raises OSError."""
        columns = vars(self) | {"gram": halved(self.gram)}
        save_file({name: value.contiguous() for name, value in columns.items()}, file)

    @classmethod
    def load(cls, file: Path) -> Sums:
        """Read sums. Raises ValueError if they do not fit together, or what a damaged file makes safetensors raise."""
        found: dict[str, Any] = load_file(file)
        classes, width = found["sums"].shape
        found["gram"] = whole(found["gram"], width)
        sums = cls(**found)
        integer, real = torch.int64, torch.float64
        wanted = {
            "gram": (real, (width, width)),
            "sums": (real, (classes, width)),
            "counts": (integer, (classes,)),
            "ids": (integer, tuple(sums.ids.shape[:1])),
            "labels": (integer, tuple(sums.ids.shape[:1])),
        }
        for name, (kind, shape) in wanted.items():
            value = found[name]
            have = tuple(value.shape)
            if value.dtype != kind or have != shape:
                raise ValueError(f"{name} has other numbers than it should: {value.dtype} {have}")
            if not value.isfinite().all() or (name in ("counts", "labels") and (value < 0).any()):
                raise ValueError(f"{name} has numbers that cannot be")
        if (sums.labels >= classes).any():
            raise ValueError("labels has one that is not a class")
        return sums
