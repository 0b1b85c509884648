"""Versions as folders: writing the next one, and going back to the one before."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from everclip import checkpoint
from everclip.deployed import is_learned, save
from everclip.errors import RunError, UserError
from everclip.updating.core import Outcome
from everclip.updating.state import BEFORE, RECORD, State, is_version, write
from everclip.updating.verdict import files

UNDONE = ".undone"


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Turns what a disk does to a version that is being written into a RunError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.errno else str(error)
        raise RunError(
            f"{os.fspath(folder)} cannot be written ({reason}): make room, or give another folder; nothing was changed"
        ) from error


def write_next(outcome: Outcome, before: State, folder: Path) -> None:
    """Commit the next version, with the one before in it. Raises OSError."""
    source = Path(before.spec).expanduser()
    texts = files(outcome.verdict)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if before.model is None:  # no class was known: there is nothing to go back to
        write(outcome.state, folder, texts, None)
    elif is_version(source) or (is_learned(before.spec) and not (source / "config.toml").is_file()):
        write(outcome.state, folder, texts, source)
    else:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            save(before.model, Path(scratch))
            write(outcome.state, folder, texts, Path(scratch))


def rollback(folder: Path) -> Path:
    """Put the version before in a version's place.

    Returns:
        where the version that was undone is from now on.

    Raises:
        UserError: the folder is no version, is damaged, or has none before it.
        OSError: the disk is full or fails; the folder is as it was then.
    """
    if not is_version(folder):
        raise UserError(
            f"{folder} is no version (it has no {RECORD}): give a folder that everclip update wrote"
        )
    try:
        checkpoint.verify(folder)
    except checkpoint.Damaged as error:
        raise UserError(f"{folder} is damaged ({error}): take the version before from elsewhere") from error
    kept = [file for file in sorted(folder.iterdir()) if file.name.startswith(BEFORE)]
    if not kept:
        raise UserError(f"{folder} keeps no version before it: it is the first, or was rolled back already")

    def put(where: Path) -> None:
        for file in kept:
            if file.name != BEFORE + checkpoint.MANIFEST:  # the new manifest has the same hashes
                shutil.copyfile(file, where / file.name.removeprefix(BEFORE))

    restored, undone = (folder.with_name(folder.name + end) for end in (".restored", UNDONE))
    checkpoint.commit(restored, put)
    shutil.rmtree(undone, ignore_errors=True)
    folder.rename(undone)
    restored.rename(folder)
    checkpoint.sync(folder.parent)
    return undone
