from __future__ import annotations

import gc
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest

from everclip.data.formats.features import FeatureStore
from everclip.data.gathered import Archive, Encoded, alone, gather, moved
from everclip.data.images import FileStore, ImageSet, Store, content_id
from everclip.data.sources.cifar100 import CifarStore
from everclip.data.sources.joined import JoinedStore
from everclip.errors import UserError


def table(store: Store, ids: int = 0) -> ImageSet:
    rows = np.arange(len(store.keys), dtype=np.int64)
    return ImageSet(store, rows, rows % 2, np.zeros_like(rows), rows + ids)


def test_sets_of_several_stores_can_be_added(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    files = FileStore(tmp_path, ["a.png", "gone.png"])
    (first, second), skipped = gather([table(files), table(Encoded(["x", "y"], [b"two", b"one"]))])
    both = first + second
    assert [both.store.read(row) for row in both.rows.tolist()] == [b"one", b"two", b"one"]
    assert both.ids.tolist() == [content_id(b"one"), content_id(b"two"), content_id(b"one")]
    assert both.nbytes() == 9
    assert list(skipped) == ["gone.png"]
    assert "No such file" in skipped["gone.png"]


def test_of_equal_images_in_a_set_the_first_stays() -> None:
    (one,), _ = gather([table(Encoded(["x", "y", "z"], [b"two", b"two", b"one"]))])
    assert one.labels.tolist() == [0, 0]
    assert len(set(one.ids.tolist())) == 2


def test_images_can_be_gathered_again_and_again() -> None:
    one = table(Encoded(["x", "y"], [b"one", b"two"]))
    for _ in range(1200):
        (one,), _ = gather([one.select(np.array([len(one) - 1]))])
    assert one.store.read(0) == b"two"
    assert (one.store.nbytes(0), one.store.content(0)) == (3, content_id(b"two"))
    assert list(one.store.keys) == ["y"]


def test_what_others_hold_is_freed() -> None:
    joined = JoinedStore(["a", "b"], [Encoded(["x"], [b"one"]), Encoded(["x", "y"], [b"two", b"three"], 4)])
    (first, second), _ = gather([table(Encoded(["z"], [b"four"])), table(joined)])
    images = alone(second.select(np.array([2])))
    gone = [weakref.ref(store) for store in (joined, first.store)]
    del joined, first, second
    gc.collect()
    assert [one() for one in gone] == [None, None]
    assert images.store.read(0) == b"three"
    assert list(images.store.keys) == ["b/y"]
    assert images.rows.tolist() == [0]


def test_images_in_files_may_move_and_those_in_memory_stay(tmp_path: Path) -> None:
    for folder, content in (("old", b"one"), ("new", b"one"), ("new", b"two")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{content.decode()}.png").write_bytes(content)
    keys = ["one.png", "two.png"]
    (files, memory), _ = gather([table(FileStore(tmp_path / "old", keys)), table(Encoded(["x"], [b"two"]))])
    images, to = alone(files + memory), table(FileStore(tmp_path / "new", keys))
    found = moved(images, to)
    for folder, gone in (("old", "one.png"), ("new", "two.png")):
        (tmp_path / folder / gone).unlink()
    assert [found.store.read(row) for row in found.rows.tolist()] == [b"one", b"two"]
    assert found.ids.tolist() == images.ids.tolist()
    assert moved(images, to.select(np.array([0]))) is images


@pytest.mark.parametrize(
    "store",
    [
        FeatureStore(np.arange(12, dtype=np.float32).reshape(3, 4), 2),
        CifarStore({"train": np.arange(3 * 3072, dtype=np.uint32).astype(np.uint8).reshape(3, 3072)}),
    ],
    ids=["features", "cifar100"],
)
def test_a_row_of_a_table_in_memory_is_kept_alone(store: Store) -> None:
    own, row = store.alone(2)
    assert own is not store
    assert len(own.keys) == 1
    assert (own.read(row), own.keys[row], own.width) == (store.read(2), store.keys[2], store.width)


def test_an_archive_is_open_only_while_it_is_read(tmp_path: Path) -> None:
    contents = {"a.png": b"one", "b.jpg": bytes(range(256)) * 9, "c.png": b""}
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    store = Archive(tmp_path / "i.zip", ["c.png", "b.jpg", "a.png"])
    assert [store.read(row) for row in range(3)] == [contents[key] for key in store.keys]
    assert [store.nbytes(row) for row in range(3)] == [0, 2304, 3]
    with zipfile.ZipFile(
        tmp_path / "i.zip", "w", zipfile.ZIP_STORED
    ) as archive:  # now it holds another version
        for name, content in {**contents, "a.png": b"two"}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    assert store.read(1) == contents["b.jpg"]
    with pytest.raises(UserError, match=r"i\.zip has changed since it was opened: load the model again"):
        store.read(2)
    (tmp_path / "i.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"i\.zip has changed"):
        store.read(1)
    (tmp_path / "i.zip").unlink()
    with pytest.raises(OSError, match=r"i\.zip"):
        store.read(0)
    with pytest.raises(OSError, match=r"i\.zip"):
        Archive(tmp_path / "i.zip", [])
