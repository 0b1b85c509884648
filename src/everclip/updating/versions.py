"""Write versions as folders, each with the previous one inside, and roll back to it."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from everclip.data.gathered import gather, moved
from everclip.errors import UserError
from everclip.inference.learned import check_version
from everclip.inference.model import save
from everclip.runs.card import FILE, identity, is_model, own_files
from everclip.system import checkpoint
from everclip.system.atomic import claimed, link, recover, stage, swap, write_atomic
from everclip.system.checkpoint import BEFORE, EARLIER, MANIFEST
from everclip.system.reading import Unreadable, read_json, read_text
from everclip.system.text import printable
from everclip.updating import kept as kept_images
from everclip.updating.core import Outcome
from everclip.updating.state import State, write
from everclip.updating.verdict import files

log = logging.getLogger("everclip")

_TITLE = "<title>everclip: version "
"""What the page of every verdict has near its beginning."""
UNDONE = ".undone"
"""Suffix of an undone version's name."""


def write_next(outcome: Outcome, before: State, folder: Path) -> State:
    """Commit the next version, with the previous one inside, or with a warning if that has gone. Call it with
    ``folder`` claimed. Afterwards the verdict of ``outcome`` counts the images that were written.

    Returns:
        the written version, from which another update can start: it lies in ``folder``, as do the images that it keeps,
        except those in main memory.

    Raises:
        UserError: ``folder`` is not empty, or the previous version has changed since the update began.
        OSError: the disk is full or fails.
    """
    source = before.place
    # several updates may lie between the two, in memory alone
    parent = {"spec": printable(before.spec), "version": before.version}
    after = replace(outcome.state, record={**outcome.state.record, "parent": parent})
    opened = before.model is not None and before.model.identity
    gone = opened and source is not None and not (source / FILE).is_file()
    if gone:  # its model alone would be kept, without what it has learned from
        after = _left(after, before.spec, folder)
    if "memory" in outcome.verdict:  # not in that of an edit
        outcome.verdict["memory"] = after.memory
    texts = files(outcome.verdict)
    if before.model is None or gone:  # there is nothing to go back to
        write(after, folder, texts, None)
    elif source is not None and is_model(source) and not _loose(source):
        if before.model.identity and identity(source) != before.model.identity:
            raise UserError(f"{before.spec} has changed since the update began: update it again")
        write(after, folder, texts, source, before.model.identity)
    else:
        with stage(folder) as scratch:
            save(before.model, scratch)
            write(after, folder, texts, scratch)
    model = after.model
    assert model is not None
    exemplars, checks = kept_images.read(folder, after.frozen)
    return replace(
        after,
        spec=str(folder),
        place=folder.absolute(),
        model=model.noting(identity=identity(folder)),
        exemplars=moved(outcome.state.exemplars, exemplars),
        checks=moved(outcome.state.checks, checks),
    )


def _left(after: State, gone: str, folder: Path) -> State:
    """Return a version without the images that lay in its previous version, which has gone, and warn of it."""
    (exemplars, checks), _ = gather([after.exemplars, after.checks])
    lost = len(after.exemplars) + len(after.checks) - len(exemplars) - len(checks)
    log.warning(
        "%s is missing: %s keeps no previous version%s (put it back, and repeat this into another folder, to have it)",
        *(gone, folder, f", and lacks {lost} images that were kept to learn from" if lost else ""),
    )
    return replace(after, exemplars=exemplars, checks=checks)


def _loose(folder: Path) -> bool:
    """Return whether no manifest vouches for the files of a folder and some are links, which may lead anywhere."""
    return not (folder / MANIFEST).is_file() and any(file.is_symlink() for file in folder.iterdir())


def settle(outcome: Outcome, before: State, folder: Path) -> None:
    """Write the next version; if it did not pass, only its verdict, beside ``folder``.

    Raises:
        UserError, OSError: as ``write_next``.
    """
    if outcome.passed:
        write_next(outcome, before, folder)
    for name, text in files(outcome.verdict).items():
        beside = folder.with_name(f"{folder.name}.{name}")
        ours = _refusal(beside)  # an earlier attempt's
        if outcome.passed and ours:
            beside.unlink(missing_ok=True)
        elif not outcome.passed and (ours or not os.path.lexists(beside)):
            write_atomic(beside, text)
        elif not outcome.passed:
            log.warning("%s holds something else and is left alone: the verdict is not written there", beside)


def _refusal(file: Path) -> bool:
    """Return whether a file holds a verdict that did not pass; a file that --json is redirected to does not."""
    try:
        if file.suffix == ".html":
            return _TITLE in read_text(file)[:500]
        found = read_json(file)
    except Unreadable:
        return False
    gate = found.get("gate") if isinstance(found, dict) else None
    return isinstance(gate, dict) and gate.get("passed") is False


def rollback(version: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Replace a version by the previous one.

    Returns:
        the version's folder, and the folder of the undone version.

    Raises:
        UserError: the folder is not a version, is damaged, in use, or has none before it.
        OSError: the disk is full or fails; the folder is as it was then.
    """
    folder = Path(os.path.realpath(Path(version).expanduser()))  # a link stays, and leads where it led
    if Path(os.path.realpath(".")).is_relative_to(folder):
        raise UserError(f"{version} is or contains the current folder: run this in the folder above it")
    recover(folder)
    check_version(version)
    with claimed(folder):
        return folder, _rollback(folder)


def _rollback(folder: Path) -> Path:
    with checkpoint.checked(folder, "get the previous version from elsewhere"):
        kept = _before(folder)
    if not kept:
        raise UserError(
            f"{folder} keeps no previous version: it is the first, was made by forget or already rolled back,"
            " or the one before it was missing"
        )

    with stage(folder) as restored:
        checkpoint.fill(restored, partial(link, kept))
        return swap(restored, folder, UNDONE)


def _before(folder: Path) -> dict[str, Path]:
    """Return the files of the previous version, by name; empty if none is kept. Raises Damaged."""
    inner = folder / BEFORE
    if inner.is_dir() and not inner.is_symlink():
        checkpoint.verify(inner)  # it may be whole where the version is not
        return own_files(inner)
    checkpoint.verify(folder)  # earlier releases kept its files beside the version's own
    kept = [name for name in checkpoint.names(folder) if name.startswith(EARLIER)]
    return {
        name.removeprefix(EARLIER): folder / name
        for name in kept
        if name not in (EARLIER, EARLIER + MANIFEST)
    }
