"""Check a data set's pictures: find duplicates, doubtful labels, and broken or tiny files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from everclip import data
from everclip.audit import suspects, twins
from everclip.audit.twins import Pair
from everclip.data.formats.folders import ADDITION
from everclip.data.images import Dataset, ImageSet, content_id
from everclip.data.inventory import contents
from everclip.data.pixels import FORMATS, Pixels
from everclip.errors import UserError
from everclip.index.embed import pictures
from everclip.index.encoder import open_encoder
from everclip.models.clip import Clip
from everclip.system.progress import Progress

NEAR = 0.95
"""Cosine of features from which two pictures count as near duplicates."""
TINY = 32
"""Pixels: a picture with a shorter side than this is tiny."""
SMALL = 16
"""Side of the pictures that are decoded where no model asks for a size."""


@dataclass(frozen=True)
class Options:
    """How to look.

    Args:
        model, image_size: the encoder of the features, and its side in pixels (None: its own).
        near: least cosine of near duplicates.
        features: whether to look for near duplicates and suspect labels at all, which needs the model.
        tiny: pixels of the shorter side below which a picture is tiny.
    """

    model: str = "lite"
    image_size: int | None = None
    near: float = NEAR
    features: bool = True
    tiny: int = TINY


@dataclass(frozen=True)
class Suspect:
    """A picture whose label is in doubt: how far the class ``other`` is ahead when it is left out."""

    place: int
    other: int
    doubt: float


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was found. Pictures are given by their places, training pictures before test pictures.

    Args:
        images: every picture looked at.
        train: how many of them are training pictures.
        sides: ``[n, 2]``, width and height in pixels; 0 where they cannot be told.
        groups: places of pictures that are the same byte for byte; first those in both parts, then those under several
            labels.
        pairs: near duplicates, first those of a training and a test picture, of each kind the nearest; ``near`` counts
            them all, and ``near_leaked`` the test pictures among them that are near a training picture.
        suspects: pictures for which another class is ahead, the greatest doubt first; None: not looked for.
        broken: place -> why the picture cannot be decoded.
    """

    data: Dataset
    options: Options
    images: ImageSet
    train: int
    sides: NDArray[np.int64]
    groups: list[list[int]]
    pairs: list[Pair]
    near: int
    near_leaked: int
    suspects: list[Suspect] | None
    broken: dict[int, str]

    def part(self, place: int) -> str:
        """Return ``train`` or ``test``."""
        return "train" if place < self.train else "test"

    def key(self, place: int) -> str:
        """Return a picture's path in its data set."""
        return str(self.images.store.keys[int(self.images.rows[place])])

    def name(self, place: int) -> str:
        """Return the class that a picture is labelled as."""
        return self.data.class_names[int(self.images.labels[place])]

    def telling(self, group: list[int]) -> list[int]:
        """Return a group in an order that shows what is wrong first: one picture, one of the other part, and one under
        another label."""
        first = group[0]
        others = [[p for p in group if about(p) != about(first)] for about in (self.part, self.name)]
        return [*dict.fromkeys([first, *(place for other in others for place in other[:1]), *group])]

    @property
    def leaked(self) -> list[int]:
        """Test pictures that are training pictures too, byte for byte."""
        return [
            place for group in self.groups if group[0] < self.train for place in group if place >= self.train
        ]

    def copies(self, part: str) -> int:
        """Return how many pictures of a part are byte-for-byte copies of another one in it."""
        inside = ([place for place in group if self.part(place) == part] for group in self.groups)
        return sum(max(0, len(places) - 1) for places in inside)

    @property
    def two_labels(self) -> list[list[int]]:
        """Groups of the same picture under several labels, of which all but one are wrong."""
        return [
            group for group in self.groups if len({int(self.images.labels[place]) for place in group}) > 1
        ]

    @property
    def tiny(self) -> list[int]:
        """Pictures with a side below ``options.tiny``, of those whose size is known."""
        short = self.sides.min(1)
        return np.flatnonzero((short > 0) & (short < self.options.tiny)).tolist()

    def as_json(self, most: int) -> dict[str, Any]:
        """Return all counts, and at most ``most`` pictures of each kind."""

        def about(place: int) -> dict[str, Any]:
            return {"image": self.key(place), "part": self.part(place), "class": self.name(place)}

        return {
            "data": self.data.name,
            "train": self.train,
            "test": len(self.images) - self.train,
            "classes": len(self.data.class_names),
            "exact": {
                "test_in_train": len(self.leaked),
                "within_train": self.copies("train"),
                "within_test": self.copies("test"),
                "two_labels": len(self.two_labels),
                "groups": [
                    [about(place) for place in self.telling(group)[:most]] for group in self.groups[:most]
                ],
            },
            "near": self._near(most) if self.options.features else None,
            "suspects": None
            if self.suspects is None
            else {
                "count": len(self.suspects),
                "first": [
                    {
                        **about(one.place),
                        "other": self.data.class_names[one.other],
                        "doubt": round(one.doubt, 4),
                    }
                    for one in self.suspects[:most]
                ],
            },
            "broken": {
                "count": len(self.broken),
                "first": [about(p) | {"why": why} for p, why in list(self.broken.items())[:most]],
            },
            "tiny": {
                "count": len(self.tiny),
                "below": self.options.tiny,
                "first": [about(p) | {"size": self.sides[p].tolist()} for p in self.tiny[:most]],
            },
        }

    def _near(self, most: int) -> dict[str, Any]:
        return {
            "model": self.options.model,
            "image_size": self.options.image_size,
            "threshold": self.options.near,
            "count": self.near,
            "test_in_train": self.near_leaked,
            "pairs": [
                {"first": self.key(one), "second": self.key(two), "cosine": round(cosine, 4)}
                for one, two, cosine in self.pairs[:most]
            ],
        }


def check(spec: str, options: Options, progress: Progress) -> Findings:
    """Look through the data set that ``spec`` names, both parts; nothing is changed. One class is enough, and without a
    test part of its own all pictures count as training pictures.

    Raises:
        UserError: there is no such data set or model, or the data are features.
    """
    found = data.load(spec, ADDITION)
    images = found.train + found.test
    if images.store.width is not None:
        raise UserError(
            f"{spec} holds features alone, and data check looks at pictures: give a data set of pictures"
        )
    clip = open_encoder(options.model, options.image_size) if options.features else None
    sides, same = _looked_at(images, progress)
    pixels, rows, good = _decoded(clip, images, progress)
    broken = {
        place: pixels.broken[row] for place, row in enumerate(images.rows.tolist()) if row in pixels.broken
    }
    train = len(images if found.held_out else found.train)
    pairs, near, near_leaked, doubtful = [], 0, 0, None
    if rows is not None:
        progress.start("compare pictures", len(rows))
        pairs, near, near_leaked = twins.near(
            rows, same[good], options.near, int((good < train).sum()), progress.count
        )
        pairs = [Pair(int(good[one]), int(good[two]), cosine) for one, two, cosine in pairs]
        doubtful = _suspects(found, images, rows, good)
    groups = _worst_first(twins.groups(same), images.labels, train)
    return Findings(found, options, images, train, sides, groups, pairs, near, near_leaked, doubtful, broken)


def _worst_first(groups: list[list[int]], labels: NDArray[np.int64], train: int) -> list[list[int]]:
    """Return groups of ascending places: those in both parts, those under several labels, the others."""

    def harmless(group: list[int]) -> tuple[bool, bool]:
        return not group[0] < train <= group[-1], len(np.unique(labels[group])) == 1

    return sorted(groups, key=harmless)


def _looked_at(images: ImageSet, progress: Progress) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the width and height ``[n, 2]`` of pictures, and ids ``[n]`` of their content, negative where
    unreadable."""
    sides = np.zeros((len(images.store.keys), 2), dtype=np.int64)

    def look(row: int) -> int:
        content = images.store.read(row)
        sides[row] = _size(content)
        return content_id(content)

    progress.start("read pictures", len(images))
    same = contents(images.rows, look, progress.count)
    return sides[images.rows], same


def _size(content: bytes) -> tuple[int, int]:
    """Return the width and height in the header of an encoded picture; 0, 0 if it is none."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.size
    except Exception:  # PIL's plug-ins raise anything; why the picture is broken is said when it is decoded
        return 0, 0


def _decoded(
    clip: Clip | None, images: ImageSet, progress: Progress
) -> tuple[Pixels, torch.Tensor | None, NDArray[np.int64]]:
    """Decode all pictures. Return what is broken, features of the others if there is a model, and their places."""
    if clip is None:
        pixels = Pixels(images.store, lambda image: image.resize((SMALL, SMALL)), SMALL, cache_bytes=0)
        progress.start("decode pictures", len(images))
        for start in range(0, len(images), 256):
            rows = images.rows[start : start + 256]
            pixels.load(rows)
            progress.step(count=len(rows))
        return pixels, None, np.zeros(0, dtype=np.int64)
    pixels = Pixels(images.store, clip.eval_transform, clip.image_size, cache_bytes=0)
    progress.start("embed pictures", len(images))
    rows, good = pictures(clip, images, pixels, progress.count)
    return pixels, rows, good.numpy()


def _suspects(found: Dataset, images: ImageSet, rows: torch.Tensor, good: NDArray[np.int64]) -> list[Suspect]:
    """Return pictures for which another class is ahead, the greatest doubt first; without those that are alone in their
    class, as no other picture could support their label."""
    labels = torch.from_numpy(images.labels[good])
    if len(labels.unique()) < 2:
        return []
    doubt, other = suspects.doubts(rows, labels, len(found.class_names))
    order = doubt.argsort(descending=True, stable=True)
    alone = labels.bincount()[labels] == 1
    order = order[((doubt > 0) & ~alone)[order]]
    return [Suspect(int(good[n]), int(other[n]), float(doubt[n])) for n in order.tolist()]
