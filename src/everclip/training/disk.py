"""Detect full disks before a run if possible, and otherwise report them in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from everclip.config import Config
from everclip.errors import RunError, UserError
from everclip.models.catalogue import Costs
from everclip.training.estimate import disk_bytes

if TYPE_CHECKING:
    from everclip.models.clip import Clip

_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}
_FAILURES |= {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV}
"""Error numbers that are the disk's fault, not the program's."""
_CODE = re.compile(r"\(os error (\d+)\)")
GIB = 1 << 30


@contextmanager
def on_disk(
    folder: str | os.PathLike[str], remedy: str = "make room, or give another folder; nothing was changed"
) -> Iterator[None]:
    """Turn disk errors while a folder is written into a one-line RunError with a remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = what_it_did(error)
        if reason is None:
            raise
        raise RunError(f"{os.fspath(folder)} cannot be written ({reason}): {remedy}") from error


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Turn disk errors of a run into a one-line RunError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not run.is_dir():
            raise RunError(f"{run} is gone: the folder was removed or its disk is missing") from error
        reason = what_it_did(error)
        if reason is None:
            raise
        raise RunError(
            f"{run} cannot be written ({reason}); its last checkpoint is intact: make room, then everclip"
            f" resume {run}"
        ) from error


def what_it_did(error: Exception) -> str | None:
    """Describe a disk error in words; None for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _FAILURES else None
    code = _CODE.search(str(error))
    return os.strerror(int(code[1])) if code and int(code[1]) in _FAILURES else None


def room(config: Config, clip: Clip, stages: int) -> float:
    """Return the number of bytes that a run of this model may write."""
    image = sum(parameter.numel() for _, parameter in clip.image_parameters())
    every = sum(parameter.numel() for parameter in clip.parameters())
    return disk_bytes(config, Costs(0, 0, image, every - image, (0, 0)), stages)


def nearest(place: Path) -> Path:
    """Return the folder that ``place`` is, or will be in: the nearest that exists."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())


def check_room(run: Path, needed: float) -> None:
    """Raise UserError where a run that writes ``needed`` bytes, of which some may be there, would fill the disk."""
    there = sum(file.stat().st_size for file in (run / "checkpoints").rglob("*") if file.is_file())
    remedy = "make room, give out=PATH on another disk, or use checkpoint.keep=1"
    check_free(run, needed - there, "the run may write", remedy)


def check_free(place: Path, needed: float, what: str, remedy: str) -> None:
    """Raise UserError where a disk has less free space than ``needed`` bytes for a file or folder on it."""
    # of several processes the first may have been refused already, and have removed its folder
    free = shutil.disk_usage(nearest(place)).free
    if needed > free:
        raise UserError(
            f"{what} {needed / GIB:.2f} GiB to {place}, whose disk has {free / GIB:.2f} GiB free: {remedy}"
        )
