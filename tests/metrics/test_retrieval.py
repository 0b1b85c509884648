"""Recall and ranks, by hand and by a plain reading of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from everclip.metrics.retrieval import Ranks, ranked


def _units(angles: list[float]) -> np.ndarray:
    return np.array([[np.cos(a), np.sin(a)] for a in np.radians(angles)], dtype=np.float32)


def test_ranks_by_hand() -> None:
    """Three images, four texts; the first image has two of them."""
    images, texts = _units([0, 40, 90]), _units([35, 80, 50, 85])
    pairs = np.array([[0, 0], [0, 1], [1, 2], [2, 3]])
    found = ranked(images, texts, pairs)
    # image 0: its text at 35 is the nearest. image 1: 35 is 5 away, its own 10. image 2: 85 is the nearest.
    assert found.images.tolist() == [1, 2, 1]
    # text 35: image 40 is nearer than 0. text 80: 90, then 40, then its own 0. text 50: 40. text 85: 90.
    assert found.texts.tolist() == [2, 3, 1, 1]
    assert found.summary() == {
        "image_to_text": {
            "recall_at_1": 2 / 3, "recall_at_5": 1.0, "recall_at_10": 1.0, "median_rank": 1.0,
        },
        "text_to_image": {
            "recall_at_1": 0.5, "recall_at_5": 1.0, "recall_at_10": 1.0, "median_rank": 1.5,
        },
    }  # fmt: skip
    assert found.recall == (2 / 3 + 0.5) / 2


def test_other_texts_of_an_image_are_no_rivals() -> None:
    """Five captions to an image, as in COCO: found by any of them, whatever stands between its own."""
    images, texts = _units([0, 60]), _units([50, 2, 3, 4, 29, 59, 58, 57, 56, 10])
    pairs = np.array([[0, t] for t in range(5)] + [[1, t] for t in range(5, 10)])
    found = ranked(images, texts, pairs)
    assert found.images.tolist() == [1, 1]
    # each caption is a query: that at 50 and that at 10 lie nearer to the other image
    assert found.texts.tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 1, 2]


def test_ties_count_against_the_query() -> None:
    same = _units([10, 10, 10, 10])
    pairs = np.array([[i, i] for i in range(4)])
    assert ranked(same, same, pairs).images.tolist() == [4, 4, 4, 4]
    # a tie between one's own texts is none
    assert ranked(same[:1], same, np.array([[0, t] for t in range(4)])).images.tolist() == [1]
    # a text that two images share is found by either, and the other one is not a rival
    images, texts = _units([0, 1, 90]), _units([0, 90])
    found = ranked(images, texts, np.array([[0, 0], [1, 0], [2, 1]]))
    assert found.texts.tolist() == [1, 1]
    assert found.images.tolist() == [1, 1, 1]


def test_what_is_not_finite_is_never_found() -> None:
    broken = np.full((3, 2), np.nan, dtype=np.float32)
    found = ranked(broken, broken, np.array([[i, i] for i in range(3)]))
    assert (found.images > 1).all()
    assert found.recall == 0.0


@pytest.mark.parametrize("block", [(1, 1), (3, 4), (7, 50), (64, 64)])
def test_blocks_change_nothing(block: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((20, 8)), rng.standard_normal((31, 8))
    images, texts = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts)
    )
    texts[7] = texts[3]  # a tie
    pairs = np.array([[t % 20, t] for t in range(31)] + [[4, 0]])
    rng.shuffle(pairs)
    found, scores = ranked(images, texts, pairs, block), images @ texts.T
    own = np.zeros(scores.shape, dtype=bool)
    own[pairs[:, 0], pairs[:, 1]] = True

    def plain(scores: np.ndarray, own: np.ndarray) -> list[int]:
        return [
            1 + sum(s >= max(row[mine]) - 1e-6 for s in row[~mine])
            for row, mine in zip(scores, own, strict=True)
        ]

    assert found.images.tolist() == plain(scores, own)
    assert found.texts.tolist() == plain(scores.T, own.T)


def test_recall_is_the_mean_of_both_directions() -> None:
    assert Ranks(np.array([1, 2, 1, 9]), np.array([1, 3, 11, 20, 30])).recall == (0.5 + 0.2) / 2
