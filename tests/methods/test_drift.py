"""Sums brought from one tower to another, beside the same written out image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.methods.shared.closed_form import within_class
from everclip.methods.shared.drift import Carrier, Moves
from everclip.methods.shared.sums import Sums
from tests.methods.closed import brute_force

WIDTH, CLASSES, EACH = 5, 4, 12


def rows(seed: int) -> Tensor:
    """Features of images of classes in turn, around a mean of their class."""
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, WIDTH, generator=random, dtype=torch.float64)
    noise = torch.randn(CLASSES * EACH, WIDTH, generator=random, dtype=torch.float64)
    return means[LABELS] + 0.3 * noise


LABELS = torch.arange(CLASSES * EACH) % CLASSES
SEEN = torch.cat([(LABELS == 3).nonzero()[:, 0], torch.arange(0, 8)]).unique()
"""All images of the newest class, and two exemplars of each other."""
OTHER = rows(1) @ torch.diag(torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0], dtype=torch.float64)) + 0.1 * rows(2)


def summed(features: Tensor) -> Sums:
    sums = Sums.empty(CLASSES, WIDTH)
    sums.add_(features, LABELS)
    return sums


def weights() -> Tensor:
    return (EACH / LABELS[SEEN].bincount(minlength=CLASSES))[LABELS[SEEN]].double()


def fitted(after: Tensor) -> Carrier:
    moves = Moves(CLASSES, WIDTH, torch.device("cpu"))
    for part in torch.arange(len(SEEN)).split(7):
        which = SEEN[part]
        moves.add(rows(1)[which], after[which], LABELS[which], weights()[part])
    return moves.carrier()


def carried(after: Tensor) -> Sums:
    before, carrier = summed(rows(1)), fitted(after)
    gram = carrier.gram(before.gram, before.sums, before.counts)
    return Sums(gram, carrier.sums(before.sums, before.counts), before.counts)


def test_the_map_and_what_it_leaves_are_those_written_out() -> None:
    x, d = rows(1)[SEEN].numpy(), (OTHER - rows(1))[SEEN].numpy()
    scale = np.sqrt(weights().numpy() * len(SEEN) / weights().sum().item())[:, None]
    lam = brute_force(scale * x, scale * d)
    offset = np.linalg.solve((scale * x).T @ (scale * x) + lam * np.eye(WIDTH), (scale * x).T @ (scale * d))
    left = d - x @ offset
    found = fitted(OTHER)
    assert_close(found.map, torch.from_numpy(np.eye(WIDTH) + offset))
    w = weights().numpy()[:, None]
    assert_close(found.left, torch.from_numpy((w * left).T @ left / w.sum()))
    for label in range(CLASSES):
        mine = LABELS[SEEN].numpy() == label
        shift = mine.sum() / (mine.sum() + 1) * left[mine].mean(0)
        assert_close(found.shifts[label], torch.from_numpy(shift))


def test_sums_of_the_other_tower_have_the_carried_means_and_scatter() -> None:
    before, after, carrier = summed(rows(1)), carried(OTHER), fitted(OTHER)
    means = before.sums / EACH @ carrier.map + carrier.shifts
    assert_close(after.sums / EACH, means)
    scatter = within_class(before.gram, before.sums, before.counts)
    expected = carrier.map.T @ scatter @ carrier.map + len(LABELS) * carrier.left
    assert_close(within_class(after.gram, after.sums, after.counts), expected)
    assert torch.equal(after.counts, before.counts)


def test_what_the_map_leaves_is_that_of_all_images_however_many_are_held_out() -> None:
    sums, found = summed(rows(1)), []
    for share in (1.0, 0.8):
        moves = Moves(CLASSES, WIDTH, torch.device("cpu"))
        moves.add(rows(1)[SEEN], OTHER[SEEN], LABELS[SEEN], share * weights())
        found.append(moves.carrier().gram(sums.gram, sums.sums, sums.counts))
    assert_close(*found)


def test_a_tower_that_has_not_moved_keeps_its_sums() -> None:
    found, before = carried(rows(1)), summed(rows(1))
    assert_close(found.gram, before.gram)
    assert_close(found.sums, before.sums)


def test_carried_means_are_nearer_than_those_before() -> None:
    true = summed(OTHER).sums / EACH
    far = (summed(rows(1)).sums / EACH - true)[:3].norm()
    assert (carried(OTHER).sums / EACH - true)[:3].norm() < 0.3 * far


def test_a_class_without_images_has_none_afterwards() -> None:
    moves, sums = Moves(CLASSES + 1, WIDTH, torch.device("cpu")), summed(rows(1)).widened(CLASSES + 1)
    moves.add(rows(1)[SEEN], OTHER[SEEN], LABELS[SEEN], torch.ones(len(SEEN), dtype=torch.float64))
    carrier = moves.carrier()
    assert carrier.sums(sums.sums, sums.counts)[CLASSES].tolist() == pytest.approx([0.0] * WIDTH)
    assert carrier.gram(sums.gram, sums.sums, sums.counts).isfinite().all()
