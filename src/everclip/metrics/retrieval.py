"""Rank texts for images and images for texts: recall at k and the median rank, in both directions.

    r_i = 1 + #{ texts t that are not of image i : s(i, t) >= max of s(i, own texts of i) - 1e-6 }
    Recall@k = fraction of the queries with r <= k

and the same for texts. An image with several texts is found by the best of them, and its other texts are no rivals; a
text is found by the best of its images: with five captions per image and no caption repeated, this is the protocol of
Karpathy and Fei-Fei (2015, https://arxiv.org/abs/1412.2306). A text that several images share is one query, and each of
its images is right. **Ties count against the query**: rivals within 1e-6 of its score rank before it, so that features
which distinguish nothing have a recall of 0, not 1.

Similarities are computed in blocks: of 30,000 images and 150,000 texts no more than a block is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

TIE = 1e-6
"""Cosines this close count as equal: more than the rounding of fp32, less than a meaningful difference."""
AT = (1, 5, 10)
"""The k of recall."""
WAYS = "image_to_text", "text_to_image"
"""The directions: captions found by an image, images found by a caption."""
BLOCK = 1024, 8192
"""Images and texts per block of similarities."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The rank of each query, from 1.

    Args:
        images: int64 ``[n]``, of the best own text of each image among all texts.
        texts: int64 ``[m]``, of the best own image of each text among all images.
    """

    images: Int64[np.ndarray, " n"]
    texts: Int64[np.ndarray, " m"]

    @property
    def recall(self) -> float:
        """The mean of Recall@1 of both directions, in 0..1."""
        return (share(self.images, 1) + share(self.texts, 1)) / 2

    def summary(self) -> dict[str, dict[str, float]]:
        """Return Recall@1, 5 and 10 in 0..1 and the median rank of each direction, ready for JSON."""
        return dict(zip(WAYS, map(_direction, (self.images, self.texts)), strict=True))


def share(ranks: Int64[np.ndarray, " n"], k: int) -> float:
    """Return Recall@k: the fraction of ranks up to ``k``, of at least one."""
    return float((ranks <= k).mean())


def _direction(ranks: Int64[np.ndarray, " n"]) -> dict[str, float]:
    return {f"recall_at_{k}": share(ranks, k) for k in AT} | {"median_rank": float(np.median(ranks))}


def ranked(
    images: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "m d"],
    pairs: Int64[np.ndarray, "p 2"],
    block: tuple[int, int] = BLOCK,
) -> Ranks:
    """Rank each image's texts among all, and each text's images.

    Args:
        images, texts: unit length.
        pairs: which belong together, as (image, text); each image and each text in at least one.
        block: images and texts whose similarities are in memory at a time.
    """
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    best = _best(images, texts, pairs, block[1])
    ahead = np.zeros(len(images), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    for rows in _blocks(len(images), block[0]):
        own = pairs[slice(*np.searchsorted(pairs[:, 0], (rows.start, rows.stop)))]
        for columns in _blocks(len(texts), block[1]):
            scores = images[rows] @ texts[columns].T
            here = own[(own[:, 1] >= columns.start) & (own[:, 1] < columns.stop)]
            scores[here[:, 0] - rows.start, here[:, 1] - columns.start] = -np.inf
            # all that is not lower, so that a nan ranks before the query too
            ahead[0][rows] += (~(scores < best[0][rows, None] - TIE)).sum(1)
            ahead[1][columns] += (~(scores < best[1][None, columns] - TIE)).sum(0)
    return Ranks(1 + ahead[0], 1 + ahead[1])


def _best(
    images: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "m d"],
    pairs: Int64[np.ndarray, "p 2"],
    size: int,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Return the best score of each image with a text of its own, and of each text."""
    best = np.full(len(images), -np.inf, np.float32), np.full(len(texts), -np.inf, np.float32)
    for part in _blocks(len(pairs), size):
        image, text = pairs[part].T
        scores = np.einsum("pd,pd->p", images[image], texts[text])
        with np.errstate(invalid="ignore"):  # a nan stays nan, and ranks behind all others
            np.maximum.at(best[0], image, scores)
            np.maximum.at(best[1], text, scores)
    return best


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
