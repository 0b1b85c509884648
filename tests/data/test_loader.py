from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from everclip import data
from everclip.data.cache.views import crop_colour
from everclip.data.images import Dataset
from everclip.data.loader import Batch, Loader, Phase
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.seeding import generator
from tests.pictures import image_folder


@pytest.fixture
def found(tmp_path: Path) -> Dataset:
    return data.load(f"imagefolder:{image_folder(tmp_path, {'train': 7, 'test': 2})}")


def loader(
    found: Dataset, size: int = 8, cache: int = 1 << 30, seed: int = 0, augment: str = "shift_flip"
) -> Loader:
    pixels = Pixels(found.train.store, lambda image: image.resize((16, 16)), 16, cache, 2)
    return Loader(pixels, size, augment, seed)


def run(maker: Loader, found: Dataset, steps: int, phase: Phase | None = None, stage: int = 0) -> list[Batch]:
    current = np.arange(len(found.train)) < 20
    return list(maker.batches(found.train, current, phase or Phase(), stage, 0, steps))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a.ids, b.ids) and torch.equal(a.images, b.images)
        for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_is_every_image_once_in_even_batches(found: Dataset) -> None:
    batches = run(loader(found), found, 6)
    assert [len(batch) for batch in batches] == [7] * 6
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == sorted(found.train.ids.tolist())


def test_order_is_a_function_of_seed_stage_epoch_and_step(found: Dataset) -> None:
    once = run(loader(found), found, 12)
    assert same(once, run(loader(found), found, 12))
    assert same(once, run(loader(found, cache=0), found, 12))
    assert not same(once[:6], once[6:])
    assert not same(once, run(loader(found, seed=1), found, 12))
    assert not same(once, run(loader(found), found, 12, stage=1))
    assert [batch.key for batch in once[5:8]] == [(0, 0, 0, 5), (0, 0, 1, 0), (0, 0, 1, 1)]


def test_phases_choose_their_images(found: Dataset) -> None:
    new = run(loader(found, 64), found, 1, Phase(data="new"))[0]
    old = run(loader(found, 64), found, 1, Phase(data="memory"))[0]
    assert (len(new), len(old)) == (20, 22)
    assert new.current.all()
    assert not old.current.any()
    assert set(new.ids.tolist()) == set(found.train.ids[:20].tolist())


def test_class_balanced_batches(found: Dataset) -> None:
    few = found.train.select((found.train.labels != 0) | (np.arange(len(found.train)) < 2))
    maker = loader(found, 8)
    batches = list(maker.batches(few, np.ones(len(few), bool), Phase(sampler="class_balanced"), 0, 0, 200))
    seen = Counter(torch.cat([batch.labels for batch in batches]).tolist())
    assert all(len(set(batch.ids.tolist())) == len(batch) for batch in batches)
    rate = np.array([seen[label] for label in range(6)]) / sum(seen.values())
    assert np.abs(rate - 1 / 6).max() < 0.03


def test_class_repeated_batches_draw_images_of_small_classes_again(found: Dataset) -> None:
    few = found.train.select((found.train.labels != 0) | (np.arange(len(found.train)) < 1))
    maker = loader(found, 12)
    whole = np.ones(len(few), bool)
    for phase, least in ((Phase(sampler="class_balanced"), 1), (Phase(sampler="class_repeated"), 2)):
        batches = maker.batches(few, whole, phase, 0, 0, 20)
        counts = [np.bincount(batch.labels.numpy(), minlength=6) for batch in batches]
        assert {int(count[0]) for count in counts} == {least}
        assert {int(count[1]) for count in counts} == {2}


class Compared(np.ndarray):
    """Labels that note how many of them are compared with one."""

    times = 0

    def __eq__(self, other: object) -> NDArray[np.bool_]:  # type: ignore[override]
        Compared.times += self.size
        return super().__eq__(other)


@pytest.mark.parametrize("sampler", ["class_balanced", "class_repeated"])
def test_a_batch_of_classes_does_not_search_all_labels(found: Dataset, sampler: Any) -> None:
    """With 1,000 classes and a million images the search of an epoch's batches would take minutes."""
    labels = 3 * found.train.labels
    orders = [
        loader(found).order(replace(found.train, labels=given), Phase(sampler=sampler), (1, 0, 2))
        for given in (labels, labels.view(Compared))
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*orders, strict=True))
    assert orders[0][0].tolist() == [29, 33, 23, 27, 38, 40, 13, 8]
    assert Compared.times == 0


def test_crops_and_colours_are_those_of_the_image_alone() -> None:
    """Whatever the batch; grey stays grey, a plain picture stays plain, and views differ."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=random)
    whole = crop_colour(images, generator(0, "test"))
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    some = np.arange(40) % 3 == 0
    assert torch.equal(crop_colour(images[some], generator(0, "test"), some), whole[some])
    assert not torch.equal(crop_colour(images, generator(1, "test")), whole)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    spread = crop_colour(grey, generator(0, "test")).int()
    assert (spread.amax(1) - spread.amin(1)).max() <= 1
    plain = images[:, :, :1, :1].expand(-1, -1, 16, 16)
    coloured = crop_colour(plain, generator(0, "test"))
    assert torch.equal(coloured, coloured[:, :, :1, :1].expand_as(coloured))
    unlike = (coloured[:, :, 0, 0].int() - plain[:, :, 0, 0].int()).abs().amax(1) > 0
    assert 0.7 <= unlike.float().mean() <= 1
    washed = (coloured[:, :, 0, 0].int().amax(1) - coloured[:, :, 0, 0].int().amin(1)) <= 1
    assert 0.05 <= washed.float().mean() <= 0.4


def test_a_crop_is_part_of_the_picture() -> None:
    """A picture of its own coordinates gives the crop away: straight, a fifth of the area at least, or mirrored."""
    side, count = 64, 200
    ramp = torch.arange(side) * (255 / (side - 1))
    images = torch.stack([ramp.expand(side, side)] * 3).round().to(torch.uint8).expand(count, -1, -1, -1)
    found = crop_colour(images, generator(3, "test")).float()
    slope = found[:, :, :, -1].mean((1, 2)) - found[:, :, :, 0].mean((1, 2))
    assert 0.35 < (slope < 0).float().mean() < 0.65, "mirrored half of the time"
    assert found.std(dim=2).mean() < 1, "rows stay rows"
    assert slope.abs().max() <= 255
    assert (slope.abs() / 255).median() > 0.4


def test_augmentation_shifts_and_flips_and_nothing_else(found: Dataset) -> None:
    plain = run(loader(found, 42, augment="none"), found, 1)[0]
    moved = run(loader(found, 42), found, 1)[0]
    assert torch.equal(plain.ids, moved.ids)
    assert not torch.equal(plain.images, moved.images)
    for before, after in zip(plain.images, moved.images, strict=True):
        padded = np.pad(before.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
        views = [padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        assert any(np.array_equal(after, v) or np.array_equal(after, v[:, :, ::-1]) for v in views)


def test_broken_images_leave_their_batch(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 4, "test": 1}, classes=2)
    (tmp_path / "train/red/0.png").write_bytes(b"")
    found = data.load(f"imagefolder:{tmp_path}")
    batches = run(loader(found, 4, cache=0), found, 2)
    assert sum(len(batch) for batch in batches) == 7
    assert sum(len(batch) for batch in loader(found, 4, cache=0).plain(found.train, 3)) == 7


def test_plain_keeps_the_order(found: Dataset) -> None:
    ids = torch.cat([batch.ids for batch in loader(found, cache=0).plain(found.test, 5)])
    assert ids.tolist() == found.test.ids.tolist()
    key = found.test.store.keys[int(found.test.rows[0])]
    root = found.test.store.root  # type: ignore[attr-defined]
    first = next(iter(loader(found).plain(found.test, 5))).images[0]
    assert np.array_equal(first.permute(1, 2, 0), np.asarray(Image.open(root / key).resize((16, 16))))


def test_a_second_view_differs_and_leaves_the_first_alone(found: Dataset) -> None:
    one, two = (run(loader(found), found, 2, Phase(views=views)) for views in (1, 2))
    for plain, both in zip(one, two, strict=True):
        assert plain.second is None
        assert both.second is not None
        assert torch.equal(plain.images, both.images)
        assert not torch.equal(both.images, both.second)
    again = run(loader(found), found, 2, Phase(views=2))
    for first, second in zip(two, again, strict=True):
        assert first.second is not None
        assert second.second is not None
        assert torch.equal(first.second, second.second)


def test_two_views_without_augmentation_are_refused(found: Dataset) -> None:
    with pytest.raises(UserError, match=r"use train\.augment=shift_flip"):
        run(loader(found, augment="none"), found, 1, Phase(views=2))
