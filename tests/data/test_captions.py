"""Captions of images: drawn one an epoch, told apart by stable ids, each text once in a test."""

from __future__ import annotations

import numpy as np
import pytest

from everclip.data.captions import MOST_CAPTION, MOST_OF_AN_IMAGE, Captions, checked
from tests.complaints import complaint

CAPTIONS = Captions([["a cat"], ["a dog", "the same dog", "a cat"], ["a bird"]])
ROWS, IDS = np.array([1, 0]), np.array([70, 80])


def test_over_the_epochs_each_caption_is_drawn_in_turn() -> None:
    drawn = [CAPTIONS.draw(ROWS, IDS, 0, (0, 0, epoch)) for epoch in range(6)]
    turns = [one.texts[0] for one in drawn]
    assert sorted(turns[:3]) == ["a cat", "a dog", "the same dog"]
    assert turns[3:] == turns[:3]
    assert {one.texts[1] for one in drawn} == {"a cat"}
    # ids of pairs: an image's own with its first caption, others with the others, the same each time
    ids = {one.texts[0]: int(one.pairs[0]) for one in drawn}
    assert ids["a dog"] == 70
    assert len({*ids.values()}) == 3
    assert {int(one.pairs[1]) for one in drawn} == {80}
    assert sorted(ids.values()) == sorted(CAPTIONS.pairs_of(ROWS[:1], IDS[:1]).tolist())
    # equal texts are the same thing said, of whichever image
    same = next(one for one in drawn if one.texts[0] == "a cat")
    assert same.which[0] == same.which[1]


def test_what_an_image_draws_depends_on_the_seed_and_not_on_its_company() -> None:
    alone = CAPTIONS.draw(ROWS[:1], IDS[:1], 0, (1, 0, 2)).texts
    assert CAPTIONS.draw(ROWS, IDS, 0, (1, 0, 2)).texts[:1] == alone
    seeds = {CAPTIONS.draw(ROWS[:1], IDS[:1], seed, (0, 0, 0)).texts[0] for seed in range(20)}
    assert len(seeds) == 3


def test_other_captions_have_another_digest() -> None:
    lists = [["a cat"], ["a dog", "the same dog", "a cat"], ["a bird"]]
    assert Captions(lists).digest() == CAPTIONS.digest()
    others = [[["a cat"], ["a dog"], ["the same dog", "a cat", "a bird"]], [["a catx"], *lists[1:]]]
    assert len({Captions(other).digest() for other in (lists, *others)}) == 3


def test_a_gallery_has_each_text_once() -> None:
    gallery = CAPTIONS.gallery(np.array([2, 1, 0]))
    assert gallery.texts == ["a bird", "a dog", "the same dog", "a cat"]
    assert gallery.pairs.tolist() == [[0, 0], [1, 1], [1, 2], [1, 3], [2, 3]]


def test_captions_are_checked() -> None:
    assert checked("here", [" a cat\n", "猫", "a cat"]) == ["a cat", "猫"]
    assert checked("here", ["x" * MOST_CAPTION]) == ["x" * MOST_CAPTION]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "here has no caption: write one, or leave the image out"),
        (["a", " \n"], "here has an empty caption: write one, or leave the image out"),
        ([3], 'here has the caption "3", which is not text: use a text'),
        (["\ud800"], "which is not text: use a text"),
        (["x" * (MOST_CAPTION + 1)], "here has a caption of 100,001 characters: keep to 100,000"),
        ([str(n) for n in range(MOST_OF_AN_IMAGE + 1)], "here has 1,001 captions: use at most 1,000"),
    ],
)
def test_what_is_no_caption_is_refused(texts: list[object], words: str) -> None:
    assert words in complaint(checked, "here", texts)
