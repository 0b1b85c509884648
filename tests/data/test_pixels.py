from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from everclip import data
from everclip.data.gathered import Encoded
from everclip.data.pixels import Pixels, stored_size, to_rgb
from tests.pictures import image_folder, tiled


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((16, 16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of which three cannot be read."""
    image_folder(tmp_path, {"train": 4, "test": 2}, classes=3)
    whole = (tmp_path / "train/red/0.png").read_bytes()
    (tmp_path / "train/red/0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/blue/1.png").write_bytes(b"this is not a picture")
    (tmp_path / "test/green/0.png").unlink()
    (tmp_path / "test/green/0.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("cache", [0, 1 << 30])
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_skipped_and_listed(folder: Path, cache: int, workers: int) -> None:
    found = data.load(f"imagefolder:{folder}")
    pixels = Pixels(found.train.store, shrink, 16, cache, workers)
    for _ in range(2):
        pictures, good = pixels.load(found.train.rows)
        assert pictures.shape == (10, 3, 16, 16)
        assert pictures.dtype == torch.uint8
        assert good.sum() == 10
    tested, good = pixels.load(found.test.rows)
    assert (len(tested), good.sum()) == (5, 5)
    assert set(pixels.skipped()) == {"train/red/0.png", "train/blue/1.png", "test/green/0.png"}
    assert all(reason and "\n" not in reason for reason in pixels.skipped().values())
    assert len(pixels.readable(found.train)) == 10


def test_what_is_known_to_be_broken_is_not_searched_again(folder: Path) -> None:
    """Several processes tell each other of a broken image in each of its batches, and a set may have a million rows."""

    class Searched(tuple[str, ...]):
        times = 0

        def __iter__(self) -> Iterator[str]:
            Searched.times += 1
            return super().__iter__()

    store = data.load(f"imagefolder:{folder}").train.store
    store.keys = Searched(store.keys)
    pixels = Pixels(store, shrink, 16)
    for _ in range(3):
        pixels.mark_broken({"train/red/0.png": "too short", "elsewhere.png": "of another run"})
    assert pixels.skipped() == {"train/red/0.png": "too short"}
    pixels.mark_broken({"train/red/0.png": "otherwise", "train/blue/1.png": "no picture"})
    assert pixels.skipped() == {"train/red/0.png": "too short", "train/blue/1.png": "no picture"}
    before = Searched.times
    pixels.mark_broken(pixels.skipped())
    assert Searched.times == before


def test_cached_and_uncached_are_equal(tmp_path: Path) -> None:
    found = data.load(f"imagefolder:{image_folder(tmp_path, {'train': 3, 'test': 1})}")
    rows = np.array([5, 0, 5, 3])
    kept, _ = Pixels(found.train.store, shrink, 16, 1 << 30, 0).load(rows)
    fresh, _ = Pixels(found.train.store, shrink, 16, 0, 2).load(rows)
    assert torch.equal(kept, fresh)
    key = found.train.store.keys[3]
    expected = np.asarray(shrink(Image.open(tmp_path / key).convert("RGB"))).transpose(2, 0, 1)
    assert np.array_equal(kept[3].numpy(), expected)


def test_nothing_readable(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 1, "test": 1}, classes=2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    found = data.load(f"imagefolder:{tmp_path}")
    for cache in (0, 1 << 30):
        pictures, good = Pixels(found.train.store, shrink, 16, cache, 0).load(found.train.rows)
        assert pictures.shape == (0, 3, 16, 16)
        assert not good.any()


def test_every_mode_becomes_rgb() -> None:
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"):
        assert to_rgb(Image.fromarray(grey).convert(mode)).mode == "RGB"
    for deep in (grey.astype(np.uint16) * 257, *(grey.astype(np.float32) * top for top in (1 / 255, 1, 257))):
        found = np.asarray(to_rgb(Image.fromarray(deep))).astype(int)[..., 0]
        assert np.abs(found - grey).max() <= 1
    few = Image.fromarray((grey > 99).astype(np.int32))  # whole numbers are steps of 255, however few
    assert np.asarray(to_rgb(few)).max() == 1


def test_an_infinite_value_is_white_and_leaves_the_others_as_they_are() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    plain = np.asarray(to_rgb(Image.fromarray(values)))[..., 0]
    values[0, :2] = np.inf, -np.inf
    found = np.asarray(to_rgb(Image.fromarray(values)))[..., 0]
    assert found[0, :2].tolist() == [255, 0]
    np.testing.assert_array_equal(found.ravel()[2:], plain.ravel()[2:])


def at_once(image: Image.Image) -> np.ndarray:
    """A deep picture in 8 bits as the whole of it was converted, with five copies in float64."""
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((top for top in tops if grey[grey < 1e300].max(initial=0) <= top), tops[-1])
    return (grey.clip(0, top) * (255 / top)).astype(np.uint8)


def deep_pictures() -> list[Image.Image]:
    """Every value of 16 bits, in pictures of one band, of several, and of bands that do not come out even."""
    every = np.arange(1 << 16)
    rows = np.random.default_rng(0).permutation(np.tile(every, 10))[: 801 * 797].reshape(801, 797)
    odd = np.linspace(-1, 1, 1 << 16, dtype=np.float32)
    odd[:4] = np.nan, np.inf, -np.inf, 0
    found = [every, every % 256, every - 40_000, every * 30_000, -every, rows]
    pictures = [Image.fromarray(one.astype(np.int32).reshape(-1, one.shape[-1])) for one in found]
    pictures += [
        Image.fromarray(one.astype(np.float32).reshape(256, -1)) for one in (every, every / 65535, odd)
    ]
    pictures += [Image.fromarray(rows.astype(np.float32)), Image.fromarray(rows.astype(np.uint16))]
    big = rows.astype(">u2")
    return [*pictures, Image.frombytes("I;16B", (797, 801), big.tobytes())]


@pytest.mark.parametrize("place", range(12))
def test_deep_pictures_are_scaled_exactly_as_at_once(place: int) -> None:
    image = deep_pictures()[place]
    found = np.asarray(to_rgb(image))
    np.testing.assert_array_equal(found, np.repeat(at_once(image)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pictures_take_little_memory(mode: str) -> None:
    image = Image.new(mode, (2000, 2000), 7)
    tracemalloc.start()
    to_rgb(image)
    assert tracemalloc.get_traced_memory()[1] < 5 * 2000 * 2000, "bytes beside those of Pillow's own pictures"
    tracemalloc.stop()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    if mode == "P":
        buffer = io.BytesIO()
        image.save(buffer, "GIF")
        image = Image.open(buffer)
    else:
        image = image.convert(mode)
    assert np.asarray(to_rgb(image)).min() == 255


def test_a_tiff_counts_as_large_as_its_tiles() -> None:
    for side, tile in ((64, 16000), (64, 48), (64, 64)):
        image = Image.open(io.BytesIO(tiled(side, tile)))
        assert image.size == (side, side)
        assert stored_size(image) == (max(side, tile),) * 2
    store = Encoded(["a"], [tiled(64, 16000)])
    pixels = Pixels(store, shrink, 16, 0, 0)
    assert len(pixels.load(np.array([0]))[0]) == 0
    assert [*pixels.skipped().values()] == ["too large: 16000 x 16000 pixels"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also below twice the limit, where Pillow only warns."""
    image_folder(tmp_path, {"train": 1, "test": 1}, classes=2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    found = data.load(f"imagefolder:{tmp_path}")
    pixels = Pixels(found.train.store, shrink, 16, 0, 0)
    assert len(pixels.load(found.train.rows)[0]) == 0
    assert {*pixels.skipped().values()} == {"too large: 40 x 40 pixels"}
