"""Manage the cache folder, for files that everclip can build again. Imports no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from everclip.errors import RunError, UserError, why
from everclip.system.atomic import remove, remove_unfinished
from everclip.system.checkpoint import Damaged, commit, verify

log = logging.getLogger("everclip")

_verified: set[Path] = set()
"""Folders that this process has verified."""


def folder() -> Path:
    """Return the cache folder, created if need be: ``$EVERCLIP_CACHE``, else ``$XDG_CACHE_HOME/everclip``, else
    ``~/.cache/everclip``.

    Raises:
        UserError: the folder cannot be written.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "everclip"
    path = Path(os.environ.get("EVERCLIP_CACHE") or usual)
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: nothing says where home is, as for a user without a name
        writable = False
    if not writable:
        raise UserError(f"the cache folder {path} cannot be written; set EVERCLIP_CACHE to a folder that can")
    return path


def built(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, as ``make`` wrote it: made on first use, and again if its files have changed.

    Every file is compared with the manifest at the first use in a process. Processes take turns, each removing what a
    killed one has left.

    Args:
        make: writes the files into the empty folder that it is called with.

    Raises:
        UserError: the folder is damaged, and ``make`` says why it cannot be made again; or it cannot be made at all.
        RunError: the disk is full or fails.
    """
    target = folder() / name
    try:
        with FileLock(f"{target}.lock"):
            if target not in _verified or not target.is_dir():
                remove_unfinished(target)
                _restore(target, make)
                _verified.add(target)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{target} cannot be used ({why(error)}): make room, or set EVERCLIP_CACHE elsewhere"
        ) from error
    return target


def problem(name: str) -> str | None:
    """Say what is wrong with a folder of the cache: empty where it is intact; None where it is missing.

    Raises:
        UserError: it may not be read.
    """
    target = folder() / name
    with FileLock(f"{target}.lock"):
        return _problem(target) if os.path.lexists(target) else None


def _problem(target: Path) -> str:
    try:
        verify(target)
    except (Damaged, UserError) as error:  # a folder in another version's format is made again too
        return str(error)
    return ""


def _restore(target: Path, make: Callable[[Path], object]) -> None:
    """Make ``target``, unless it is whole."""
    there, reason = os.path.lexists(target), _problem(target)
    if not reason:
        return

    def write(where: Path) -> None:
        make(where)
        remove(target)

    try:
        commit(target, write)
    except UserError as error:
        if there:
            raise UserError(f"{target} is damaged ({reason}) and cannot be built again: {error}") from error
        raise
    if there:
        log.warning("%s was damaged or outdated (%s): it was built again", target, reason)
