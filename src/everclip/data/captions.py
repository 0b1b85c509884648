"""Hold the captions of images: a table of texts, and which of them each image has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everclip.errors import UserError, shown
from everclip.seeding import hash64

MOST_CAPTION = 100_000
"""Characters of a caption; what a text tower does not read is cut off later, and counted."""
MOST_OF_AN_IMAGE = 1000
"""Captions of one image."""
PAIR = "every pair"
"""The class of all pairs without a group: with one class instead of many, all are weighed and kept alike."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """The captions that a training step sees, one per image.

    Args:
        texts: ``b`` captions.
        which: int64 ``[b]``: equal where the texts are.
        pairs: int64 ``[b]``: stable ids of (image, caption), by which estimators are kept; that of an image's first
            caption is the image's own id.
    """

    texts: Sequence[str]
    which: NDArray[np.int64]
    pairs: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Gallery:
    """The images and the distinct captions of a test, and which belong together.

    Args:
        texts: ``m`` captions in the order in which images have them.
        pairs: int64 ``[p, 2]``: (image, caption), positions.
    """

    texts: list[str]
    pairs: NDArray[np.int64]


class Captions:
    """The captions of a store's rows, at least one of each.

    Args:
        lists: captions by row of the store.
    """

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        place: dict[str, int] = {}
        lists = list(lists)
        self._starts = np.cumsum([0, *map(len, lists)])
        found = (place.setdefault(text, len(place)) for texts in lists for text in texts)
        self._which = np.fromiter(found, dtype=np.int64, count=int(self._starts[-1]))
        self.texts = tuple(place)

    def digest(self) -> str:
        """Return a hash of all captions and of whose they are, in hexadecimal."""
        found = hashlib.blake2b(self._starts.tobytes() + self._which.tobytes(), digest_size=16)
        for text in self.texts:
            found.update(text.encode() + b"\0")
        return found.hexdigest()

    def count(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 ``[n]``: how many captions each of these rows has."""
        return self._starts[rows + 1] - self._starts[rows]

    def draw(
        self, rows: NDArray[np.int64], ids: NDArray[np.int64], seed: int, key: tuple[int, int, int]
    ) -> Drawn:
        """Return one caption of each image; over the epochs of a phase an image's captions take turns.

        Args:
            rows, ids: of the images; what one draws does not depend on the others.
            seed: the run's.
            key: (stage, phase, epoch).
        """
        stage, phase, epoch = key
        counts = self.count(rows).tolist()
        turns = [
            0 if count == 1 else (hash64("caption", seed, stage, phase, sample) + epoch) % count
            for sample, count in zip(ids.tolist(), counts, strict=True)
        ]
        which = self._which[self._starts[rows] + np.array(turns, dtype=np.int64)]
        pairs = [_pair(sample, turn) for sample, turn in zip(ids.tolist(), turns, strict=True)]
        texts = [self.texts[text] for text in which.tolist()]
        return Drawn(texts, which, np.array(pairs, dtype=np.int64))

    def pairs_of(self, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return stable ids of all pairs of these images."""
        images = zip(ids.tolist(), self.count(rows).tolist(), strict=True)
        return np.array([_pair(sample, turn) for sample, n in images for turn in range(n)], dtype=np.int64)

    def gallery(self, rows: NDArray[np.int64]) -> Gallery:
        """Return the captions of these images, each text once."""
        counts = self.count(rows)
        image = np.repeat(np.arange(len(rows)), counts)
        inside = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
        which = self._which[np.repeat(self._starts[rows], counts) + inside]
        place: dict[int, int] = {}
        text = [place.setdefault(number, len(place)) for number in which.tolist()]
        pairs = np.unique(np.stack([image, np.array(text, dtype=np.int64)], 1), axis=0)
        return Gallery([self.texts[number] for number in place], pairs)


def _pair(sample: int, turn: int) -> int:
    """Return the id of an image with one of its captions."""
    return sample if turn == 0 else hash64("pair", sample, turn)


def checked(where: str, texts: Sequence[object]) -> list[str]:
    """Return the captions of an image, stripped, each once. Raises UserError for none, too many, or one that is no
    text.

    Args:
        where: the image's place, for the message.
    """
    found: dict[str, None] = {}
    for text in texts:
        if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{where} has the caption {shown(repr(text))}, which is not text: use a text")
        text = text.strip()
        if not text:
            raise UserError(f"{where} has an empty caption: write one, or leave the image out")
        if len(text) > MOST_CAPTION:
            raise UserError(f"{where} has a caption of {len(text):,} characters: keep to {MOST_CAPTION:,}")
        found[text] = None
    if not found:
        raise UserError(f"{where} has no caption: write one, or leave the image out")
    if len(found) > MOST_OF_AN_IMAGE:
        raise UserError(f"{where} has {len(found):,} captions: use at most {MOST_OF_AN_IMAGE:,}")
    return list(found)
