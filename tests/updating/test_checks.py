from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everclip.data.images import FileStore, ImageSet
from everclip.errors import UserError
from everclip.runs.card import CardTask
from everclip.updating.candidates import Candidate
from everclip.updating.classifiers import Known
from everclip.updating.core import choose
from everclip.updating.holdout import Checks
from everclip.updating.rule import Decision

PREFER = Decision("ridge", True, "gcl", 1.0, 20, "text")


def table(labels: list[int], first: int = 0) -> ImageSet:
    rows = np.arange(len(labels), dtype=np.int64)
    return ImageSet(
        FileStore(Path(), [str(i) for i in rows]), rows, np.array(labels), np.zeros_like(rows), rows + first
    )


def known(*tasks: list[int]) -> Known:
    names = tuple(str(label) for label in sorted({label for task in tasks for label in task}))
    return Known(names, tuple(CardTask(name="t", labels=task) for task in tasks), ("{}",), {})


def said(truth: ImageSet, wrong: list[int], classes: int) -> np.ndarray:
    """Scores that are right but for some images."""
    found = np.eye(classes, dtype=np.float32)[truth.labels]
    for row in wrong:
        found[row] = np.roll(found[row], 1)
    return found


def one(name: str, scores: np.ndarray, eligible: bool = True) -> Candidate:
    return Candidate(name, scores, lambda: pytest.fail("nothing is built to compare"), 0.0, eligible)


def test_classes_count_alike() -> None:
    images = table([0, 0, 0, 0, 1])
    checks = Checks.of(images, images, known([0, 1]))
    np.testing.assert_allclose(checks.weight, [1 / 8] * 4 + [1 / 2])
    assert checks.accuracy(said(images, [4], 2)) == pytest.approx(0.5)
    assert checks.accuracy(said(images, [0], 2)) == pytest.approx(7 / 8)
    assert checks.accuracy(said(images, [0], 2), images.labels == 0) == pytest.approx(3 / 4)
    assert checks.accuracy(said(images, [], 2), images.labels == 7) is None


def test_a_new_domain_does_not_outvote_the_old_ones() -> None:
    """Learned in three updates, of which the newest has four images here and the others one: it counts a third."""
    images = table([0] * 5)
    checks = Checks.of(images, images.select(np.arange(1, 5)), known([0], [0], [0]))
    np.testing.assert_allclose(checks.weight, [2 / 3] + [1 / 12] * 4)


def test_an_old_class_without_new_images_is_its_old_ones() -> None:
    images = table([0, 0, 1])
    checks = Checks.of(images, images.select(np.array([2])), known([0], [1]))
    np.testing.assert_allclose(checks.weight, [1 / 4, 1 / 4, 1 / 2])


def test_the_preferred_one_stays_unless_another_is_clearly_better() -> None:
    images = table([i % 4 for i in range(40)])
    checks = Checks.of(images, images, known([0, 1, 2, 3]))
    ridge = one("ridge", said(images, list(range(12)), 4))
    near, far = (
        one(name, said(images, wrong, 4)) for name, wrong in (("means", [*range(10)]), ("trained", [0]))
    )
    assert choose([near, ridge], PREFER, checks, "auto")[0] is ridge  # two images: 5 points
    assert choose([near, ridge, far], PREFER, checks, "auto")[0] is far
    assert choose([ridge, near], PREFER, checks, "means")[0] is near
    ahead, error = checks.better(near.scores, ridge.scores)
    assert ahead == pytest.approx(0.05)
    # 40 images of which 2 differ one way, and 4 more, 2 each way: mean 2 / 44, squares 6 / 44
    assert error == pytest.approx(np.sqrt((6 / 44 - (2 / 44) ** 2) / 44) * 44 / 40)


def test_a_few_old_images_decide_nothing() -> None:
    """Seven old images with three quarters of the weight: three of them alone are no reason to switch."""
    images = table([i % 7 for i in range(91)])
    checks = Checks.of(images, images.select(np.arange(7, 91)), known(*[list(range(7))] * 4))
    ridge, trained = (
        one(name, said(images, wrong, 7)) for name, wrong in (("ridge", [0, 1, 2]), ("trained", []))
    )
    assert checks.better(trained.scores, ridge.scores)[0] == pytest.approx(0.75 * 3 / 7)
    assert choose([ridge, trained], PREFER, checks, "auto")[0] is ridge
    ridge = one("ridge", said(images, list(range(7)), 7))
    assert choose([ridge, trained], PREFER, checks, "auto")[0] is trained


def test_what_cannot_name_all_classes_is_left_out() -> None:
    images = table([0, 1])
    checks = Checks.of(images, images, known([0, 1]))
    nothing = one("nothing", said(images, [], 2), eligible=False)
    ridge = one("ridge", said(images, [0, 1], 2))
    assert choose([nothing, ridge], PREFER, checks, "auto")[0] is ridge
    with pytest.raises(UserError, match="cannot be used here: use ridge, or auto"):
        choose([nothing, ridge], PREFER, checks, "nothing")
    with pytest.raises(UserError, match="no candidate can recognise all classes"):
        choose([nothing], PREFER, checks, "auto")


def test_without_check_images_the_preferred_one_is_kept() -> None:
    none = table([0]).select(np.zeros(0, dtype=np.int64))
    checks = Checks.of(none, none, known([0]))
    empty = np.zeros((0, 1), dtype=np.float32)
    kept, why = choose([one("means", empty), one("ridge", empty)], PREFER, checks, "auto")
    assert kept.name == "ridge"
    assert "no check images" in why
