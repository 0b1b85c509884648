"""Write versions as folders, each with the previous one inside, and roll back to it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from everclip.errors import UserError
from everclip.inference.learned import is_version
from everclip.inference.model import save
from everclip.runs.card import FILE, identity
from everclip.system import checkpoint
from everclip.system.atomic import claimed, recover, stage, swap, write_atomic
from everclip.system.checkpoint import BEFORE, EARLIER
from everclip.updating.core import Outcome
from everclip.updating.state import RECORD, State, write
from everclip.updating.verdict import files

UNDONE = ".undone"
"""Suffix of an undone version's name."""


def write_next(outcome: Outcome, before: State, folder: Path) -> None:
    """Commit the next version, with the previous one inside. Call it with ``folder`` claimed.

    Raises:
        UserError: ``folder`` is not empty, or the previous version has changed since the update began.
        OSError: the disk is full or fails.
    """
    source = Path(before.spec).expanduser()
    texts = files(outcome.verdict)
    if before.model is None:  # no class was known: there is nothing to go back to
        write(outcome.state, folder, texts, None)
    elif (source / FILE).is_file() and not (source / "config.toml").is_file():
        if before.model.identity and identity(source) != before.model.identity:
            raise UserError(f"{source} has changed since the update began: update it again")
        write(outcome.state, folder, texts, source)
    else:
        with stage(folder) as scratch:
            save(before.model, scratch)
            write(outcome.state, folder, texts, scratch)


def settle(outcome: Outcome, before: State, folder: Path) -> None:
    """Write the next version, or where it did not pass the verdict alone, beside ``folder``.

    Raises:
        UserError, OSError: as ``write_next``.
    """
    if outcome.passed:
        write_next(outcome, before, folder)
        return
    for name, text in files(outcome.verdict).items():
        write_atomic(folder.with_name(f"{folder.name}.{name}"), text)


def rollback(version: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Replace a version by the previous one.

    Returns:
        the version's folder, and the folder of the undone version.

    Raises:
        UserError: the folder is no version, is damaged, in use, or has none before it.
        OSError: the disk is full or fails; the folder is as it was then.
    """
    folder = Path(version).expanduser().resolve()  # a link stays, and leads to what it led to
    if Path(os.path.realpath(".")).is_relative_to(folder):
        raise UserError(
            f"{version} is or contains the current folder: change to the folder above, and give its name"
        )
    recover(folder)
    if not is_version(folder):
        raise UserError(
            f"{version} is no version (it has no {RECORD}): give a folder that everclip update wrote"
        )
    with claimed(folder):
        return folder, _rollback(folder)


def _rollback(folder: Path) -> Path:
    try:
        checkpoint.verify(folder)
        kept = _before(folder)
    except checkpoint.Damaged as error:
        raise UserError(f"{folder} is damaged ({error}): get the previous version from elsewhere") from error
    if not kept:
        raise UserError(f"{folder} keeps no previous version: it is the first, or was already rolled back")

    def put(where: Path) -> None:
        for name, file in kept.items():
            shutil.copyfile(file, where / name)

    with stage(folder) as restored:
        checkpoint.fill(restored, put)
        return swap(restored, folder, UNDONE)


def _before(folder: Path) -> dict[str, Path]:
    """Return the files of the previous version, by name; empty if none is kept. Raises Damaged if they are not
    intact."""
    inner = folder / BEFORE
    if inner.is_symlink() or not inner.is_dir():
        found = {name: folder / name for name in checkpoint.names(folder) if name.startswith(EARLIER)}
        kept = {name.removeprefix(EARLIER): file for name, file in found.items()}
        return {name: file for name, file in kept.items() if name not in ("", checkpoint.MANIFEST)}
    checkpoint.verify(inner)
    names = checkpoint.names(inner) | {name for name in checkpoint.UNSIGNED if (inner / name).is_file()}
    return {name: inner / name for name in names}
