"""Kept activations: computed once, the same whoever asks first, with fixed views, without broken images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from everclip import data
from everclip.data.cache.activations import GROUP, Activations, fingerprint, grouped
from everclip.data.cache.rows import Memory, Rows, Shared
from everclip.data.cache.views import fixed_view, shift_flip
from everclip.data.images import Dataset, ImageSet
from everclip.data.loader import Batch, Loader, Phase
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.seeding import generator
from tests.pictures import image_folder

SIDE = 16


@pytest.fixture
def found(tmp_path: Path) -> Dataset:
    return data.load(f"imagefolder:{image_folder(tmp_path / 'images', {'train': 7, 'test': 2})}")


def test_kinds_are_the_images_of_each_class_and_domain(found: Dataset) -> None:
    draw = np.random.default_rng(0)
    labels, domains = draw.integers(0, 4, len(found.train)), draw.integers(-1, 2, len(found.train))
    kinds = replace(found.train, labels=labels, domains=domains).kinds()
    pairs = sorted({*zip(labels.tolist(), domains.tolist(), strict=True)})
    assert [where.tolist() for where in kinds] == [
        np.flatnonzero((labels == label) & (domains == domain)).tolist() for label, domain in pairs
    ]
    assert found.train.select(labels < 0).kinds() == []


class Encoder:
    """Pictures to small activations; counts what it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, pictures: Tensor) -> Tensor:
        self.batches.append(len(pictures))
        return pictures[:, :, ::4, ::4].float() / 255


def pixels(found: Dataset) -> Pixels:
    return Pixels(found.train.store, lambda image: image.resize((SIDE, SIDE)), SIDE, 0, 0)


def activations(
    found: Dataset, views: int = 1, rows: Rows | None = None, encode: Callable[[Tensor], Tensor] | None = None
) -> Activations:
    rows = Memory((3, 4, 4), False) if rows is None else rows
    return Activations(pixels(found), encode or Encoder(), rows, views, [found.train], [found.test])


def loader(kept: Activations, augment: str = "none", seed: int = 0) -> Loader:
    return Loader(kept.pixels, 8, augment, seed, kept)


def batches(maker: Loader, images: ImageSet, steps: int = 6, views: int = 1, start: int = 0) -> list[Batch]:
    phase = Phase(views=views)  # pyright: ignore[reportArgumentType]
    return list(maker.batches(images, np.ones(len(images), dtype=bool), phase, 0, 0, steps, start))


def counted(kept: Activations) -> list[int]:
    assert isinstance(kept.encode, Encoder)
    return kept.encode.batches


def test_each_image_is_computed_once(found: Dataset) -> None:
    kept = activations(found)
    maker = loader(kept)
    seen = torch.cat([batch.ids for batch in batches(maker, found.train, 12)])
    plain = list(maker.plain(found.train))
    assert sum(counted(kept)) == len(found.train)
    assert sorted(seen.tolist()) == sorted([*found.train.ids.tolist()] * 2)
    assert torch.cat([batch.ids for batch in plain]).tolist() == found.train.ids.tolist()
    whole, _ = pixels(found).load(found.train.rows)
    assert torch.equal(torch.cat([batch.images for batch in plain]), Encoder()(whole).half())
    by_id = dict(zip(found.train.ids.tolist(), Encoder()(whole).half(), strict=True))
    for batch in batches(maker, found.train):
        assert torch.equal(batch.images, torch.stack([by_id[sample] for sample in batch.ids.tolist()]))


def test_groups_depend_on_the_data_alone(found: Dataset) -> None:
    shuffled = found.train.select(generator(0, "test").permutation(len(found.train)))
    groups = grouped([found.train, found.test])
    assert [g.ids.tolist() for g in groups] == [g.ids.tolist() for g in grouped([shuffled, found.test])]
    assert fingerprint([found.train]) == fingerprint([shuffled]) != fingerprint([found.train, found.test])
    assert len(groups) == 12
    for group in groups:
        assert len({*group.labels.tolist()}) == 1
        assert np.all(np.diff(group.ids) > 0)
    many = found.train.select(np.zeros(GROUP + 1, dtype=np.int64))
    assert [len(group) for group in grouped([many])] == [GROUP, 1]


def test_a_group_is_always_computed_whole(found: Dataset) -> None:
    """A processor's last bit depends on how many rows it is given; here the encoder says how many there were."""
    rows = Memory((1,), True)
    kept = activations(
        found, rows=rows, encode=lambda pictures: torch.full((len(pictures), 1), len(pictures))
    )
    one = found.train.select(np.array([3]))
    kept.fill(one)
    assert kept.load(one)[0].tolist() == [[7.0]]
    assert len(rows) == 1, "of the others nothing is kept"


def test_dropped_images_are_computed_again(found: Dataset) -> None:
    kept = activations(found)
    maker = loader(kept)
    maker.prepare(found.train)
    before, _ = kept.load(found.train)
    maker.drop(found.train.ids[:3])
    assert len(kept.rows) == len(found.train) - 3
    maker.prepare(found.train)
    assert torch.equal(kept.load(found.train)[0], before)
    assert sum(counted(kept)) == len(found.train) + 7, "the one group that lost some"
    Loader(kept.pixels, 8).drop(found.train.ids)


def test_each_epoch_sees_the_next_view(found: Dataset) -> None:
    kept = activations(found, views=3)
    maker = loader(kept, "shift_flip")
    per_epoch = maker.steps_per_epoch(len(found.train))
    met: list[list[Batch]] = []
    for epoch in range(4):
        met.append(batches(maker, found.train, (epoch + 1) * per_epoch, start=epoch * per_epoch))
        assert sum(counted(kept)) == min(epoch + 1, 3) * len(found.train), (
            "a view is computed when it is drawn"
        )
    position = {sample: place for place, sample in enumerate(found.train.ids.tolist())}
    for view, epoch in ((1, 0), (2, 1), (3, 2), (1, 3)):
        rows, _ = kept.load(found.train, view)
        for batch in met[epoch]:
            assert torch.equal(batch.images, rows[[position[sample] for sample in batch.ids.tolist()]])
    later = batches(maker, found.train, 3 * per_epoch, start=per_epoch + 2)
    once = [*met[1][2:], *met[2]]
    assert [batch.number for batch in later] == [batch.number for batch in once]
    assert all(torch.equal(a.images, b.images) for a, b in zip(once, later, strict=True))
    plain = next(iter(maker.plain(found.test)))
    whole, _ = pixels(found).load(found.test.rows)
    assert torch.equal(plain.images, Encoder()(whole).half()), "tests see the picture itself"


def test_no_more_is_computed_than_the_steps_see(found: Dataset) -> None:
    kept = activations(found, views=4)
    one = found.train.select(found.train.labels == found.train.labels[0])
    seen = batches(loader(kept, "shift_flip"), found.train + one, 1)
    groups = {int(label) for label in seen[0].labels}
    assert sum(counted(kept)) == 7 * len(groups)


def test_without_kept_views_training_sees_pictures(found: Dataset) -> None:
    kept = activations(found, views=0)
    maker, plain = loader(kept, "shift_flip"), Loader(kept.pixels, 8, "shift_flip")
    for a, b in zip(batches(maker, found.train, 12, 2), batches(plain, found.train, 12, 2), strict=True):
        assert torch.equal(a.images, b.images)
        assert a.second is not None
        assert b.second is not None
        assert torch.equal(a.second, b.second)
    assert counted(kept) == []
    assert next(iter(maker.plain(found.test))).images.shape[1:] == (3, 4, 4), "tests read rows"


def test_two_views_of_an_image_differ(found: Dataset) -> None:
    kept = activations(found, views=2)
    for batch in batches(loader(kept, "shift_flip"), found.train, views=2):
        assert batch.second is not None
        assert not any(torch.equal(a, b) for a, b in zip(batch.images, batch.second, strict=True))
    with pytest.raises(UserError, match=r"one is kept: use cache\.views=4, or cache\.trunk=off"):
        batches(loader(activations(found), "shift_flip"), found.train, views=2)


def test_fixed_views_are_views(found: Dataset) -> None:
    pictures, _ = pixels(found).load(found.train.rows)
    ids = found.train.ids.tolist()
    assert fixed_view(pictures, ids, 0) is pictures
    views = [fixed_view(pictures, ids, view) for view in (1, 2)]
    assert not torch.equal(*views)
    assert torch.equal(fixed_view(pictures[5:], ids[5:], 1), views[0][5:]), "each by its own image"
    same = (
        torch.arange(3 * SIDE * SIDE)
        .view(1, 3, SIDE, SIDE)
        .remainder(251)
        .to(torch.uint8)
        .expand(300, -1, -1, -1)
    )
    ours = {view.numpy().tobytes() for view in fixed_view(same, list(range(300)), 1)}
    theirs = {view.numpy().tobytes() for view in shift_flip(same, generator(0, "test"))}
    assert len(ours) == len(theirs) == 50, "25 shifts, mirrored or not"
    assert ours == theirs


def test_broken_images_are_left_out_as_ever(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 4, "test": 1}, classes=2)
    (tmp_path / "train/red/0.png").write_bytes(b"")
    (tmp_path / "train/green/1.png").write_bytes(b"no picture")
    found = data.load(f"imagefolder:{tmp_path}")
    kept = activations(found)
    assert sum(len(batch) for batch in batches(loader(kept), found.train, 1)) == 6
    assert sum(len(batch) for batch in loader(kept).plain(found.train, 3)) == 6
    assert set(kept.pixels.skipped()) == {"train/red/0.png", "train/green/1.png"}
    before = len(counted(kept))
    kept.fill(found.train)
    assert len(counted(kept)) == before, "they are not tried again"


def test_a_shared_cache_serves_the_next_and_knows_changed_images(found: Dataset, tmp_path: Path) -> None:
    def rows() -> Shared:
        return Shared((3, 4, 4), False, tmp_path / "shared", {})

    first = activations(found, rows=rows())
    first.fill(found.train.select(np.array([0])))
    assert len(first.rows) == 7, "whole groups are kept, for others"
    first.fill(found.train)
    second = activations(found, rows=rows())
    second.fill(found.train)
    assert counted(second) == []
    assert torch.equal(second.load(found.train)[0], first.load(found.train)[0])

    root: Path = found.train.store.root  # type: ignore[attr-defined]
    changed, gone = (found.train.store.keys[int(found.train.rows[place])] for place in (0, 8))
    (root / changed).write_bytes((root / found.train.store.keys[int(found.train.rows[20])]).read_bytes())
    (root / gone).unlink()
    third = activations(found, rows=rows())
    third.fill(found.train)
    assert counted(third) == [7]
    after, good = third.load(found.train)
    assert good.tolist() == [place != 8 for place in range(len(found.train))]
    assert torch.equal(after[0], after[19]), "the new content"
    assert gone in third.pixels.skipped()


def test_a_broken_image_does_not_make_a_shared_file_grow(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", {"train": 4, "test": 1}, classes=2)
    (tmp_path / "images/train/red/0.png").write_bytes(b"no picture")
    found = data.load(f"imagefolder:{tmp_path / 'images'}")
    encoded: list[list[int]] = []
    for _ in range(3):
        kept = activations(found, rows=Shared((3, 4, 4), False, tmp_path / "shared", {}))
        kept.fill(found.train)
        encoded.append(counted(kept))
        assert (tmp_path / "shared" / "rows.bin").stat().st_size == 7 * kept.rows.row_bytes
    assert encoded == [[4, 3], [], []]


def test_two_data_sets_of_equal_names_share_a_file_at_once(tmp_path: Path) -> None:
    """Each run reads its own rows, whatever the other writes between its filling and its reading."""
    runs = []
    for name in ("one", "other"):
        root = image_folder(tmp_path / name, {"train": 4, "test": 1}, classes=2)
        if name == "other":  # the same names, and the two classes' pictures swapped
            (root / "train/red").rename(root / "train/x")
            (root / "train/green").rename(root / "train/red")
            (root / "train/x").rename(root / "train/green")
        found = data.load(f"imagefolder:{root}")
        kept = activations(found, rows=Shared((3, 4, 4), False, tmp_path / "shared", {}))
        runs.append((found, kept, Encoder()(pixels(found).load(found.train.rows)[0]).half()))
    (one, first, own), (other, second, its) = runs
    assert one.train.ids.tolist() == other.train.ids.tolist()
    assert not torch.equal(own, its)
    for _ in range(2):
        first.fill(one.train)
        second.fill(other.train)
        first.fill(one.test)
        second.fill(other.test)
        assert torch.equal(first.load(one.train)[0], own)
        assert torch.equal(second.load(other.train)[0], its)
    assert len(first.rows) == 2 * 8 + 2, "and none is computed twice"


def test_progress_is_told(found: Dataset) -> None:
    told: list[int] = []
    kept = activations(found)
    kept.begin = lambda total: told.append(total) or (lambda done: told.append(-done))
    kept.fill(found.train)
    kept.fill(found.train)
    assert told[0] == 42
    assert sum(told) == 0
