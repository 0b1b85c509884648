"""Images in Arrow columns: bytes, paths, both or neither; and files that lie elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everclip.data.formats.arrow import ArrowStore
from everclip.data.images import MOST_BYTES
from everclip.errors import UserError
from tests.complaints import complaint

pa: Any = pytest.importorskip("pyarrow", reason='pyarrow is in the extra: pip install "everclip[hf]"')

Cell = dict[str, bytes | str | None] | None
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def column(*chunks: list[Cell]) -> Any:
    return pa.chunked_array(list(chunks), type=IMAGE)


def cell(data: bytes | None, path: str | None = None) -> Cell:
    return {"bytes": data, "path": path}


def test_bytes_of_several_splits_and_chunks() -> None:
    train = column([cell(b"a"), cell(b"bc", "x.png")], [], [cell(b"d", "/else/where.png")])
    store = ArrowStore("set", {"train": train, "test": column([cell(b"efgh")])}, None, [])
    assert store.keys == ["train/0", "train/1", "train/2", "test/0"]
    assert [store.read(row) for row in range(4)] == [b"a", b"bc", b"d", b"efgh"]
    assert [store.nbytes(row) for row in range(4)] == [1, 2, 1, 4]


def test_rows_without_an_image_are_broken_images() -> None:
    store = ArrowStore("set", {"train": column([None, cell(None), cell(b"a")])}, None, [])
    for row in (0, 1):
        with pytest.raises(OSError, match="no image in this row"):
            store.read(row)
        assert store.nbytes(row) == 0
    assert store.read(2) == b"a"


def test_paths_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "red" / name).write_bytes(name.encode())
    paths = ["red/0.png", str(tmp_path / "red" / "1.png")]
    images = column([*(cell(None, path) for path in paths), cell(b"inside", "2.png"), cell(None, None)])
    store = ArrowStore("set", {"train": images}, tmp_path, [])
    assert store.keys == ["red/0.png", "red/1.png", "train/2", "train/3"]
    assert [store.read(row) for row in range(3)] == [b"0.png", b"1.png", b"inside"]
    assert [store.nbytes(row) for row in range(4)] == [5, 5, 6, 0]
    (tmp_path / "red" / "1.png").unlink()
    with pytest.raises(OSError, match="no such file"):
        store.read(1)
    with pytest.raises(
        UserError, match=r'row 1 of the split "train" of hf:set names the file ".*1\.png", which is missi'
    ):
        ArrowStore("set", {"train": images}, tmp_path, [])


def test_paths_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"a")
    images = column([cell(None, str(tmp_path / "0.png"))])
    store = ArrowStore("org/set", {"train": images}, None, [str(tmp_path)])
    assert store.keys == ["train/0"]
    assert store.read(0) == b"a"


def test_files_that_are_too_large(tmp_path: Path) -> None:
    with (tmp_path / "0.png").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    store = ArrowStore("set", {"train": column([cell(None, "0.png")])}, tmp_path, [])
    with pytest.raises(OSError, match="a very large one"):
        store.read(0)


OUTSIDE = (
    'row 1 of the split "train" of hf:set names the file "{}", which lies outside of the data set: use'
    " save_to_disk"
)
REMOTE = 'row 1 of the split "train" of hf:set names the file {}: download and unpack it first'


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/hostname", OUTSIDE.format("/etc/hostname")),
        ("../out.png", OUTSIDE.format("../out.png")),
        ("link.png", OUTSIDE.format("link.png")),
        ("up/out.png", OUTSIDE.format("up/out.png")),
        ("https://a.b/c.png", REMOTE.format('"https://a.b/c.png"')),
        ("zip://c.png::a.zip", REMOTE.format('"zip://c.png::a.zip"')),
        ("a\0b", REMOTE.format('"a\\u0000b"')),
        ("./in.png", 'row 0 of the split "train" of hf:set and row 1 of the split "train" of hf:set have the same file'
                     ' "{root}/in.png": keep one of them'),
    ],
)  # fmt: skip
def test_files_that_may_not_be_read(tmp_path: Path, path: str, message: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "out.png").write_bytes(b"")
    (root / "in.png").write_bytes(b"")
    (root / "link.png").symlink_to("../out.png")
    (root / "up").symlink_to("..", target_is_directory=True)
    columns = {"train": column([cell(None, "in.png"), cell(None, path)])}
    assert complaint(ArrowStore, "set", columns, root, []) == message.replace("{root}", str(root))
