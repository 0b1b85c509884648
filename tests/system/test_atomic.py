"""Files and folders that are written whole, by one process at a time, with nothing foreign touched."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from everclip.errors import UserError
from everclip.system import atomic as durable
from everclip.system.atomic import claimed, new_folder, recover, stage, swap, write_atomic
from everclip.system.outputs import check_new


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: a file's bytes, None for a folder."""
    places = sorted(folder.rglob("*"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in places}


def made(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "a").write_text(content)
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, bytes | None]:
    """What a user may have beside a target ``v``."""
    for name in (
        "v.tmp",
        "v.undone",
        "v.restored",
        "v.part",
        ".v-a1b2c3d4",
        ".v.everclip-notes",
        "v.json.tmp",
    ):
        made(tmp_path / name, name)
    return tree(tmp_path)


def test_a_file_is_written_whole_and_nothing_else_is_touched(
    tmp_path: Path, foreign: dict[str, bytes | None]
) -> None:
    (tmp_path / ".v.json.everclip-0123abcd").write_text("of a killed process")
    write_atomic(tmp_path / "v.json", "new")
    assert tree(tmp_path) == foreign | {"v.json": b"new"}
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "v.json", 3)  # pyright: ignore[reportArgumentType]
    assert tree(tmp_path) == foreign | {"v.json": b"new"}


def test_the_unfinished_file_of_a_living_process_stays(tmp_path: Path) -> None:
    part, descriptor = durable._new_part(tmp_path / "v.json")
    write_atomic(tmp_path / "v.json", "another's")
    assert part.exists()
    os.close(descriptor)
    write_atomic(tmp_path / "v.json", "again")
    assert os.listdir(tmp_path) == ["v.json"]


def test_a_new_folder_is_whole_and_nothing_else_is_touched(
    tmp_path: Path, foreign: dict[str, bytes | None]
) -> None:
    made(tmp_path / ".v.everclip-0123abcd", "of a killed process")
    with new_folder(tmp_path / "v") as folder:
        (folder / "a").write_text("whole")
        assert not (tmp_path / "v").exists()
    assert tree(tmp_path) == foreign | {"v": None, "v/a": b"whole"}


def test_what_appears_at_a_target_is_left_alone(tmp_path: Path) -> None:
    for make in (lambda: made(tmp_path / "v", "theirs"), lambda: (tmp_path / "v").write_text("a file")):
        folder = new_folder(tmp_path / "v")
        (folder.__enter__() / "a").write_text("ours")
        make()
        before = tree(tmp_path / "v") or (tmp_path / "v").read_text()
        with pytest.raises(UserError, match="has appeared in the meantime and is left alone"):
            folder.__exit__(None, None, None)
        assert (tree(tmp_path / "v") or (tmp_path / "v").read_text()) == before
        assert os.listdir(tmp_path) == ["v"]
        shutil.rmtree(tmp_path / "v", ignore_errors=True)


def _hold(path: Path, held: Event, end: Event) -> None:
    with claimed(path):
        held.set()
        end.wait(60)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "v", held, end))
    other.start()
    assert held.wait(60)
    message = rf"is being written by another process \(process {other.pid} on"
    with pytest.raises(UserError, match=message), claimed(tmp_path / "v"):
        pass
    with claimed(tmp_path / "w"):
        pass
    end.set()
    other.join(60)
    with claimed(tmp_path / "v"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("atomic", [True, False])
def test_a_swap_keeps_both(tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not atomic:
        monkeypatch.setattr(durable, "exchange", lambda first, second: False)
    made(tmp_path / "v", "old")
    made(tmp_path / "v.undone", "foreign")
    with stage(tmp_path / "v") as new:
        (new / "a").write_text("new")
        assert swap(new, tmp_path / "v", ".undone") == tmp_path / "v.undone-2"
    assert tree(tmp_path) == {
        "v": None,
        "v/a": b"new",
        "v.undone": None,
        "v.undone/a": b"foreign",
        "v.undone-2": None,
        "v.undone-2/a": b"old",
    }


class Killed(BaseException):
    """As if the process ended here: nothing is cleaned up."""


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("calls", range(1, 4))
def test_an_interrupted_swap_is_finished_or_undone(
    tmp_path: Path, atomic: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "v", "old")
    new = made(tmp_path / ".v.everclip-0123abcd", "new")
    left = calls
    rename = os.rename

    def killing(first: Path, second: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        rename(first, second)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killing)
        if not atomic:
            patched.setattr(durable, "exchange", lambda first, second: False)
        with suppress(Killed):
            swap(new, tmp_path / "v", ".undone")
    recover(tmp_path / "v")
    after = {name: tree(tmp_path / name)["a"] for name in os.listdir(tmp_path)}
    undone, done = {"v": b"old"}, {"v": b"new", "v.undone": b"old"}
    assert after == (undone if not atomic and calls == 1 else done)


@pytest.mark.parametrize("name", ["in/v", "in/current", "current"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_swap_killed_before_the_exchange_is_undone_or_done(moved: bool, name: str, tmp_path: Path) -> None:
    """Also through a link, which for a moment leads to nothing where two names cannot be exchanged."""
    (tmp_path / "in").mkdir()
    made(tmp_path / "in" / "v", "old")
    made(tmp_path / "in" / f".v.everclip-swap-{(tmp_path / 'in' / 'v').stat().st_ino}.undone", "new")
    if moved:
        (tmp_path / "in" / "v").rename(tmp_path / "old")
    (tmp_path / "in" / "current").symlink_to("v")
    (tmp_path / "current").symlink_to("in/current")
    recover(tmp_path / name)
    assert sorted(os.listdir(tmp_path / "in")) == ["current", "v"]
    assert (tmp_path / "in" / "v" / "a").read_text() == ("new" if moved else "old")


def test_a_swap_of_a_folder_whose_own_name_looks_like_one(tmp_path: Path) -> None:
    folder = made(tmp_path / "swap-7.v", "old")
    made(tmp_path / f".swap-7.v.everclip-swap-{folder.stat().st_ino}.undone", "new")
    recover(folder)
    assert os.listdir(tmp_path) == ["swap-7.v"]
    assert (folder / "a").read_text() == "old"


def test_what_a_killed_process_left_goes_with_the_next_that_uses_the_folder(
    tmp_path: Path, foreign: dict[str, bytes | None]
) -> None:
    made(tmp_path / "v", "whole")
    (tmp_path / ".v.everclip-lock").write_text("process 1 on a machine")
    made(tmp_path / ".v.everclip-0123abcd", "half")
    recover(tmp_path / "v")
    assert tree(tmp_path) == foreign | {"v": None, "v/a": b"whole"}
    with claimed(tmp_path / "v"):
        recover(tmp_path / "v")
        assert (tmp_path / ".v.everclip-lock").exists(), "one that is held stays"


@pytest.mark.parametrize("kind", ["link", "loose link", "pipe"])
def test_a_lock_that_leads_elsewhere_is_not_taken(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a stranger's version is to recover it: with a filelock that follows links, that emptied the target."""
    monkeypatch.delattr(os, "O_NOFOLLOW")
    theirs, folder, lock = tmp_path / "theirs", made(tmp_path / "v", "a"), tmp_path / ".v.everclip-lock"
    theirs.write_text("keep me")
    os.mkfifo(lock) if kind == "pipe" else lock.symlink_to(theirs if kind == "link" else tmp_path / "nothing")
    recover(folder)
    wrong = r"v cannot be written, as \.v\.everclip-lock is a (link|pipe): remove it"
    with pytest.raises(UserError, match=wrong), claimed(folder):
        pass
    assert theirs.read_text() == "keep me"
    assert not (tmp_path / "nothing").exists()
    assert os.path.lexists(lock)


def test_a_swap_that_others_have_meddled_with_is_left_alone(tmp_path: Path) -> None:
    made(tmp_path / "v", "of another user")
    made(tmp_path / ".v.everclip-swap-1.undone", "who knows")
    before = tree(tmp_path)
    recover(tmp_path / "v")
    assert tree(tmp_path) == before


def test_targets_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path / "in")
    for out, reason in (
        (".", "the current folder"),
        ("..", "the current folder"),
        ("../in", "the current folder"),
        ("../nothing", "is a link to nothing"),
        ("../loop", "is a link to nothing"),
        ("../file", "exists"),
        ("../file/x", "is a file"),
        ("/dev/null", "exists"),
        ("/proc", "is where a disk is mounted: give a new folder inside it"),
        ("x" * 300, "File name too long"),
        ("~nobody-of-that-name/x", "home"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            check_new(out)
        assert "\n" not in str(error.value)
    assert check_new("../link") == tmp_path / "empty"
    with new_folder("../link") as folder:
        (folder / "a").write_text("through the link")
    assert (tmp_path / "link" / "a").read_text() == "through the link"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.usefixtures("unprivileged")
def test_a_new_folder_where_nothing_can_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=rf"cannot be written \(no permission in {tmp_path}\): give another"):
        check_new(tmp_path / "new" / "one")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("code", [None, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_new_file_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """Also on a disk without hard links, which says so in several ways."""

    def refuse(part: Path, path: Path) -> None:
        raise OSError(code, "no links here", str(part))

    if code is not None:
        monkeypatch.setattr(os, "link", refuse)
    write_atomic(tmp_path / "a", "one", new=True)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "a", "two", new=True)
    assert (tmp_path / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
