"""Check the outputs that a user names, before any work is done for them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

from everclip.errors import UserError, why
from everclip.system.reading import kind_of


def check_file(out: str | os.PathLike[str]) -> Path:
    """Return the path of a file to write, which may exist; links are followed, and stay.

    Raises:
        UserError: it is a folder, a pipe or a device, which the file would replace.
    """
    try:
        found = os.stat(out)
    except FileNotFoundError:
        return Path(os.path.realpath(out))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another place") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{out} cannot be written (it is {kind_of(found)}): give the name of a file")
    return Path(os.path.realpath(out))


def open_own(path: Path, mode: Literal["ab", "wb"]) -> BinaryIO:
    """Open a file to be written, unbuffered. Raises OSError for a link, or a pipe that would be waited for."""
    return open(path, mode, buffering=0, opener=_own)


def _own(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def named(path: Path) -> Path:
    """Return the path of a folder with a name that others beside it can have: "." and ".." are resolved."""
    return path if path.name.strip(".") else path.resolve()


def check_new(out: str | os.PathLike[str]) -> Path:
    """Return the path of a folder to write; a link to an empty folder is followed.

    Raises:
        UserError: something is there, nothing can be created there, or it is or contains the current folder.
    """
    try:
        return _new(Path(out).expanduser(), os.fspath(out))
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of an unknown user
        raise UserError(f"{str(out)[:200]} cannot be written ({why(error)}): give another folder") from error


def _new(path: Path, out: str) -> Path:
    if path.is_symlink():
        if not path.exists():
            raise UserError(f"{out} is a link to nothing: give a new or an empty folder")
        path = path.resolve()
    if Path(os.path.realpath(".")).is_relative_to(os.path.realpath(path)):
        raise UserError(f"{out} is the current folder, or one that holds it: give the name of a new folder")
    if os.path.ismount(path):  # no folder can be renamed to it
        raise UserError(f"{out} is where a disk is mounted: give a new folder inside it")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{out} exists: give a new or an empty folder")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"{out} cannot be written, as {above} is a file: give another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{out} cannot be written (no permission in {above}): give another folder")
    return path
