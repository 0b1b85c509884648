"""Rows in memory, in a nameless file and in a shared one: the same numbers, and nothing wrong after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from everclip.data.cache.rows import RECORD, Key, Memory, Rows, Shared, Spilled
from everclip.errors import RunError
from tests.training.test_disk import files_up_to

SHAPE = (3, 5)


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def shared(folder: Path, exact: bool = False) -> Shared:
    return Shared(SHAPE, exact, folder / "rows", {"trunk": "a test's"})


def make(kind: str, folder: Path, exact: bool) -> Rows:
    if kind == "memory":
        return Memory(SHAPE, exact)
    return Spilled(SHAPE, exact, folder) if kind == "file" else shared(folder, exact)


def key(sample: int, view: int = 0, content: int = 7) -> Key:
    return sample, view, content


def put(rows: Rows, ids: list[int], what: Tensor, view: int = 0, content: int = 7) -> None:
    with rows.filling():
        rows.write([key(sample, view, content) for sample in ids], what)


@pytest.mark.parametrize("kind", ["memory", "file", "shared"])
@pytest.mark.parametrize("exact", [False, True])
def test_rows_come_back(kind: str, exact: bool, tmp_path: Path) -> None:
    rows, what = make(kind, tmp_path, exact), values(4)
    put(rows, [2**62, 1, 5, 3], what)
    put(rows, [5], what[:1], view=2)
    expected = what if exact else what.half()
    found = rows.read([key(3, 0), key(2**62, 0), key(5, 2), key(3, 0)])
    assert torch.equal(found, expected[[3, 0, 0, 3]])
    assert found.dtype == (torch.float32 if exact else torch.float16)
    assert rows.has(key(1, 0))
    assert not rows.has(key(1, 1))
    assert (len(rows), rows.row_bytes, rows.nbytes) == (5, 60 if exact else 30, 5 * rows.row_bytes)
    assert rows.read([]).shape == (0, *SHAPE)
    put(rows, [1], what[2:3])
    assert torch.equal(rows.read([key(1, 0)]), expected[2:3])
    assert len(rows) == 5


@pytest.mark.parametrize("kind", ["memory", "file", "shared"])
def test_large_values_do_not_overflow(kind: str, tmp_path: Path) -> None:
    rows, what = make(kind, tmp_path, False), values(3)
    what[1] *= 1e6
    what[2, 0, 0] = torch.inf
    put(rows, [0, 1, 2], what)
    plain, large = rows.read([key(0, 0)]), rows.read([key(0, 0), key(1, 0)])
    assert plain.dtype == torch.float16
    assert large.dtype == torch.float32
    assert torch.equal(large[0], plain[0].float())
    assert ((large[1] - what[1]).abs() <= 1e-3 * what[1].abs() + 1.0).all()
    assert rows.read([key(2, 0)])[0, 0, 0].isinf(), "what is not a number is not hidden"


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_dropped_rows_are_free(kind: str, tmp_path: Path) -> None:
    rows = make(kind, tmp_path, False)
    put(rows, list(range(10)), values(10))
    put(rows, [3], values(1), view=1)
    rows.drop([3, 4, 99])
    assert len(rows) == 8
    assert not rows.has(key(3, 0))
    assert not rows.has(key(3, 1))
    put(rows, [20, 21, 22], values(3, 1))
    assert torch.equal(
        rows.read([key(20, 0), key(9, 0)]), torch.stack([values(3, 1)[0], values(10)[9]]).half()
    )
    if isinstance(rows, Spilled):
        assert os.fstat(rows._file).st_size == 11 * rows.row_bytes, "their places are used again"
        assert not list(tmp_path.iterdir()), "the file has no name, so that nothing is left of it"


def test_a_shared_file_is_read_by_others_and_kept(tmp_path: Path) -> None:
    first, second = shared(tmp_path), shared(tmp_path)
    put(first, [1, 2], values(2))
    assert len(second) == 0
    with second.filling():
        assert second.has(key(1, 0))
        second.write([key(3)], values(1, 1))
    second.drop([1])
    third = shared(tmp_path)
    assert torch.equal(third.read([key(1, 0), key(3, 0)]), torch.cat([values(2)[:1], values(1, 1)]).half())
    assert '"trunk"' in (tmp_path / "rows" / "about.json").read_text()


def test_another_image_of_the_same_id_has_a_row_of_its_own(tmp_path: Path) -> None:
    rows, other = shared(tmp_path), shared(tmp_path)
    put(rows, [1], values(1), content=2**64 - 1)
    assert rows.has(key(1, content=2**64 - 1))
    assert not rows.has(key(1, content=8))
    put(other, [1], values(1, 1), content=8)
    put(rows, [2], values(1))
    for known in (rows, other, shared(tmp_path)):
        with known.filling():
            pass
        assert torch.equal(known.read([key(1, content=8)]), values(1, 1).half())
        assert torch.equal(known.read([key(1, content=2**64 - 1)]), values(1).half())


def test_a_full_disk_of_a_shared_file_names_its_folder(tmp_path: Path) -> None:
    rows = shared(tmp_path)
    put(rows, [1], values(1))
    with files_up_to(3 * rows.row_bytes // 2), pytest.raises(RunError) as error:
        put(rows, [2, 3], values(2, 1))
    assert str(error.value) == (
        f"{rows.folder} cannot be written (File too large): make room, or set EVERCLIP_CACHE to a folder of your"
        " own on a disk with room; everclip resume goes on"
    )
    put(rows, [4], values(1, 2))
    for known in (rows, shared(tmp_path)):
        assert len(known) == 2
        assert torch.equal(known.read([key(1), key(4)]), torch.cat([values(1), values(1, 2)]).half())


def test_a_shared_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/rows cannot be written \(Not a directory\): .* EVERCLIP_CACHE"):
        shared(tmp_path / "file")
    rows = shared(tmp_path)
    (rows.folder / "lock").unlink(missing_ok=True)
    (rows.folder / "lock").mkdir()
    with pytest.raises(RunError, match=r"/rows cannot be written \(Is a directory\)"), rows.filling():
        pass
    with pytest.raises(RunError, match=r"/rows cannot be written \(Is a directory\)"):
        shared(tmp_path)


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    rows = shared(tmp_path)
    put(rows, [1, 2], values(2))
    with (tmp_path / "rows" / "rows.bin").open("ab") as file:
        file.write(b"\xff" * (2 * rows.row_bytes + 3))  # rows without a record
    with (tmp_path / "rows" / "index.bin").open("ab") as file:
        file.write(b"\xff" * (RECORD.itemsize - 1))  # a record cut short
    again = shared(tmp_path)
    assert len(again) == 2
    put(again, [3], values(1, 1))
    for known in (again, shared(tmp_path)):
        assert len(known) == 3
        expected = torch.cat([values(2), values(1, 1)]).half()
        assert torch.equal(known.read([key(1, 0), key(2, 0), key(3, 0)]), expected)


@pytest.mark.parametrize("file", ["rows.bin", "index.bin"])
def test_a_damaged_row_is_never_used(file: str, tmp_path: Path) -> None:
    rows, what = shared(tmp_path), values(3)
    put(rows, [1, 2, 3], what)
    place = {"rows.bin": 30 + 7, "index.bin": RECORD.itemsize + 13}[file]  # of the second row, and its scale
    content = bytearray((tmp_path / "rows" / file).read_bytes())
    content[place] ^= 1
    (tmp_path / "rows" / file).write_bytes(content)
    again = shared(tmp_path)
    assert torch.equal(again.read([key(1), key(3)]), what.half()[[0, 2]])
    with pytest.raises(RunError, match=r"rows holds a damaged row: remove it"):
        again.read([key(1), key(2)])


def test_records_without_rows_are_ignored(tmp_path: Path) -> None:
    rows = shared(tmp_path)
    put(rows, [1, 2, 3], values(3))
    os.truncate(tmp_path / "rows" / "rows.bin", rows.row_bytes + 2)
    with pytest.raises(RunError, match="was cut while it was in use"):
        rows.read([key(3, 0)])
    again = shared(tmp_path)
    assert len(again) == 1
    put(again, [2], values(1, 1))
    assert torch.equal(again.read([key(2, 0), key(1, 0)]), torch.cat([values(1, 1), values(3)[:1]]).half())


@pytest.mark.slow
def test_a_process_killed_while_it_writes_lets_the_lock_go(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.data.test_rows import key, put, shared, values\n"
        f"rows = shared(Path({str(tmp_path)!r})); put(rows, [1], values(1))\n"
        "with rows.filling():\n print('writing', flush=True)\n while True: rows.write([key(2)], values(1))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
    rows = shared(tmp_path)
    put(rows, [3], values(1, 1))
    assert torch.equal(rows.read([key(1, 0), key(3, 0)]), torch.cat([values(1), values(1, 1)]).half())
    index = np.fromfile(tmp_path / "rows" / "index.bin", dtype=RECORD)
    assert set(index["id"].tolist()) <= {1, 2, 3}
