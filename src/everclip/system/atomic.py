"""Write files and folders atomically: a reader, or a crash, finds the old or the new content, never a mixture.

Unfinished work lies beside its target under hidden names that no user would choose:

    .NAME.everclip-0123abcd     a file or folder that is being written
    .NAME.everclip-swap-INODE   a finished folder that takes the place of the one with this inode
    .NAME.everclip-lock         held while a folder is written

What a killed process leaves is removed, or finished, by the next one that uses the target. Nothing else ever is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from everclip.errors import UserError
from everclip.system.outputs import check_new
from everclip.system.reading import Unreadable, diverted, read_text
from everclip.system.signals import unwinding

_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_UNABLE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Error numbers of a disk without hard links, such as FAT's."""
_RENAME_EXCHANGE, _CWD = 2, -100
_PART, _SWAP = "[0-9a-f]{8}", r"swap-\d+\D.*"


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(part: Path, path: Path) -> None:
    """Move a finished file to its place in the same folder, flushed to the disk; what was there is replaced."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def write_atomic(path: Path, content: str | bytes, new: bool = False) -> None:
    """Write a file whole. What was there is replaced; if ``new``, it is left, and FileExistsError raised.

    Raises OSError; the file then stays as it was.
    """
    _remove_dead_parts(path)
    part, descriptor = _new_part(path)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(descriptor)
            (_give if new else os.replace)(part, path)
    finally:
        part.unlink(missing_ok=True)  # it is gone if it was moved
    sync(path.parent)


def _give(part: Path, path: Path) -> None:
    """Rename a file to a name that must be free. Raises FileExistsError where it is taken."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # the name is ours from here on
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        os.replace(part, path)


def _new_part(path: Path) -> tuple[Path, int]:
    """Return a new file beside ``path``, locked as long as its descriptor is open, so that others know it is in use."""
    while True:
        part = _beside(path, secrets.token_hex(4))
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a disk without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)  # another process took it for a dead one's before it was locked


def _remove_dead_parts(path: Path) -> None:
    """Remove the unfinished files of killed processes."""
    for part in _found(path, _PART):
        with suppress(OSError):  # gone, in use, or on a disk without locks
            descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from writing the folder ``path``, after finishing or removing what killed ones left.

    Raises:
        UserError: another process writes it, or its parent cannot be written.
        Stopped: SIGTERM or SIGHUP came.
    """
    with unwinding():
        lock = _beside(path, "lock")
        held = FileLock(lock, timeout=0.2, poll_interval=0.05)  # not 0: an owner that ends removes the file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if wrong := diverted(path.parent, [lock.name]):  # what it leads to would be emptied
                raise UserError(f"{path} cannot be written, as {wrong}: remove it, or give another folder")
            held.acquire()
        except Timeout:
            raise UserError(f"{path} is being written by another process{holder(lock)}: wait") from None
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): give another folder") from error
        try:
            with suppress(OSError):  # who holds it is for a message only
                note_holder(lock)
            _finish_swaps(path)
            remove_unfinished(path)
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held: whoever waits for it notices
            held.release()


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes have left of ``path``. Call it where no other process can be at work on it."""
    for left in _found(path, _PART):
        remove(left, ignore_errors=True)


def note_holder(file: Path) -> None:
    """Write down that this process holds a lock. Raises OSError."""
    file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")


def holder(file: Path) -> str:
    """Return in brackets the process that called ``note_holder``, to append to a message; empty if unknown."""
    try:
        text = " ".join(read_text(file, 1000).split())
    except Unreadable:
        return ""
    return f" ({text[:100]})" if text.isprintable() and text else ""


@contextmanager
def stage(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to fill and then to move; what is still there at the end is removed.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _beside(path, secrets.token_hex(4))
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def settle(made: Path, path: Path) -> None:
    """Give a finished folder its name, in one step.

    Raises:
        UserError: something is at ``path`` that was not there before; it is left alone.
        OSError: the disk fails.
    """
    try:
        os.rename(made, path)  # the system replaces nothing but an empty folder
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise UserError(
            f"{path} has appeared in the meantime and is left alone: give another folder"
        ) from None
    sync(path.parent)


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write into, which becomes ``out`` at the end: complete, or not there.

    Raises:
        UserError: ``out`` cannot be a new folder, or another process writes it.
        OSError: the disk is full or fails.
    """
    path = check_new(out)
    with claimed(path), stage(path) as made:
        yield made
        for place in (made, *made.rglob("*")):
            if not place.is_symlink():
                sync(place)
        settle(made, path)


def link(files: Mapping[str, Path], where: Path) -> None:
    """Put files into a folder by name, as hard links where possible, and leave out what is none. Raises OSError."""
    for name, file in files.items():
        if file.is_file():
            # a hub's snapshot has relative links, which would lead nowhere from here
            file = file.resolve()
            try:
                os.link(file, where / name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, where / name)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the disk cannot. Raises OSError where it fails."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_CWD, os.fsencode(first), _CWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNABLE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def swap(made: Path, folder: Path, end: str) -> Path:
    """Put a finished folder in the place of another one, which is kept as ``NAME + end`` (or ``-2``, ...).

    Call it with ``folder`` claimed. After a crash ``folder`` is one of the two, or the next ``recover`` makes it so.

    Returns:
        where the other one is kept.

    Raises:
        OSError: the disk fails.
    """
    ready = _beside(folder, f"swap-{folder.stat().st_ino}{end}")
    os.rename(made, ready)
    if exchange(ready, folder):
        aside = _free(folder, end)
        os.rename(ready, aside)
    else:
        aside = _free(folder, end)
        os.rename(folder, aside)
        os.rename(ready, folder)
    sync(folder.parent)
    return aside


def recover(folder: Path) -> None:
    """Finish or undo an interrupted swap of a folder, and remove whatever else a killed process has left of it; a link
    is followed.

    Does nothing if nothing was left, if a process is at work there, or if it cannot be done.
    """
    if os.path.islink(folder):
        folder = Path(os.path.realpath(folder))
    if folder.name and _found(folder, f"lock|{_PART}|{_SWAP}"):
        with suppress(UserError, OSError), claimed(folder):
            pass


def _finish_swaps(folder: Path) -> None:
    for ready in _found(folder, _SWAP):
        number, end = re.findall(r"swap-(\d+)(\D.*)", ready.name.removeprefix(_beside(folder, "").name))[0]
        old = int(number)
        if ready.stat().st_ino == old:
            os.rename(ready, _free(folder, end))
        elif not folder.exists():
            os.rename(ready, folder)
        elif folder.stat().st_ino == old:
            remove(ready, ignore_errors=True)
        # else someone else has been at work: all of it is left alone
        sync(folder.parent)


def _free(folder: Path, end: str) -> Path:
    """Return ``NAME + end`` if nothing is there, else the same with a number."""
    aside, number = folder.with_name(folder.name + end), 2
    while os.path.lexists(aside):
        aside, number = folder.with_name(f"{folder.name}{end}-{number}"), number + 1
    return aside


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.everclip-{what}")


def _found(path: Path, what: str) -> list[Path]:
    """Return the names beside ``path`` that match; empty where they cannot be listed."""
    pattern = re.compile(f"{re.escape(_beside(path, '').name)}(?:{what})")
    try:
        return [path.parent / name for name in sorted(os.listdir(path.parent)) if pattern.fullmatch(name)]
    except OSError:
        return []


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file, a link or a folder, if it is there; ``ignore_errors`` is for folders."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)
