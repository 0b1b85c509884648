"""Write and verify checkpoints: folders with a manifest that has the hash of every file.

    manifest.json   {"checkpoint": {"everclip", "files": {name: {"bytes", "sha256"}}, "format", "on"}, "sha256"}

The last number is the hash of the rest, and the file must be, byte for byte, what its content is written as, so no byte
of a checkpoint can change unnoticed. ``on`` names the checkpoints that it builds on and cannot be used without. Files
are written into a temporary folder (atomic.py), hashed and flushed to the disk (fsync), then the manifest; then the
folder gets its name (rename), and its parent is flushed. Whenever the power fails, the folder exists as a whole or not
at all.

Names tell the place in a run; places sort in its order:

    begin                           before the first task
    task-002-phase-1-step-000150    in task 2 (counted from 0), with 150 batches of phase 1 done
    stage-002                       after task 2
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from everclip._version import __version__
from everclip.errors import RunError, UserError
from everclip.system.atomic import exchange, settle, stage, sync, write_atomic
from everclip.system.reading import JSON_BYTES, Unreadable, parse_json

FORMAT = 1
MANIFEST = "manifest.json"
DAMAGED = ".damaged"
"""Suffix of a folder that could not be used; the next checkpoint removes it."""
BEFORE = "before"
"""The folder in which a version keeps its predecessor, with its own manifest."""
EARLIER = "before-"
"""Prefix of its files in earlier releases, which kept them beside the version's own files."""
UNSIGNED = {"calibration.json", "README.md"}
"""Files that may change without changing a checkpoint: a calibration names what it is of, a model card is prose."""

log = logging.getLogger("everclip")
_UNUSABLE = "checkpoint %s cannot be used (%s): using the previous one"
_NAME = re.compile(r"begin|stage-(\d{3,9})|task-(\d{3,9})-phase-(\d{1,9})-step-(\d{6,12})")


class Damaged(Exception):
    """A checkpoint is not what was written: why, in a few words."""


class Place(NamedTuple):
    """A place of a run: in a task, before batch ``step`` of a phase; ``(t, 0, 0)`` is between tasks t - 1 and t."""

    task: int
    phase: int = 0
    step: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is between two tasks."""
        return self.phase == self.step == 0

    @property
    def name(self) -> str:
        """The name of its folder."""
        if self.whole:
            return f"stage-{self.task - 1:03d}" if self.task else "begin"
        return f"task-{self.task:03d}-phase-{self.phase}-step-{self.step:06d}"

    def words(self, tasks: Sequence[str]) -> str:
        """Return the place in words; ``tasks`` are the tasks' names."""
        if not self.whole:
            return f"in {tasks[self.task]} after step {self.step} of phase {self.phase + 1}"
        return f"after {tasks[self.task - 1]}" if self.task else f"before {tasks[0]}"

    @classmethod
    def of(cls, name: str) -> Place | None:
        """Return the place that a folder's name tells; None where it is not a checkpoint's."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        stage, *rest = found.groups()
        numbers = rest if rest[0] is not None else [0 if stage is None else int(stage) + 1]
        place = cls(*map(int, numbers))
        return place if place.name == name else None  # stage-0001 would be read as stage-001


class Store:
    """The checkpoints of a run.

    Args:
        path: their folder.
        keep: how many of each kind are kept, between two tasks and within the present one.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep

    def places(self) -> list[Place]:
        """List the places that have a checkpoint, in the order of the run; damaged ones count until they are read."""
        found = (Place.of(folder.name) for folder in self.path.glob("*") if folder.is_dir())
        return sorted(place for place in found if place is not None)

    def folder(self, place: Place) -> Path:
        """Return the folder that holds the checkpoint of a place, or would hold it."""
        return self.path / place.name

    def commit(self, place: Place, write: Callable[[Path], object], on: Sequence[Place] = ()) -> None:
        """Save a place as ``commit`` does, over an earlier one; then delete what is no longer wanted."""
        folder, names = self.folder(place), [base.name for base in on]
        with stage(folder) as made:
            fill(made, write, names)
            if not folder.exists():
                settle(made, folder)
            elif not exchange(made, folder):  # a run's own folder, which the run has locked
                shutil.rmtree(folder)
                settle(made, folder)
        self._clear(place)
        for aside in self.path.glob("*" + DAMAGED):
            shutil.rmtree(aside, ignore_errors=True)

    def _clear(self, place: Place) -> None:
        """Delete what is no longer wanted once the run stands at a place."""
        every = self.places()
        whole = [old for old in every if old.whole]
        inner = [old for old in every if not old.whole and old.task == place.task]
        kept = {*whole[-self.keep :], *[old for old in inner if old.step][-self.keep :]}
        if not place.whole:  # within a task, checkpoints build on where each phase began
            kept |= {old for old in inner if not old.step}
        gone = [self.folder(old) for old in every if old not in kept]
        for left in (*self.path.glob(".*.everclip-*"), *self.path.glob("*.tmp")):  # .tmp: of earlier versions
            shutil.rmtree(left, ignore_errors=True)
        for folder in gone:  # renamed first: one that is half removed must not look like a checkpoint
            aside = folder.with_name(f".{folder.name}.everclip-gone")
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def newest(self) -> list[Place]:
        """Return the newest intact checkpoint, preceded by those that it builds on; empty before the first.

        Newer ones are set aside, each with a warning; what a killed commit would have deleted is deleted.

        Raises:
            RunError: there are checkpoints, and none can be used.
        """
        for place in reversed(self.places()):
            try:
                trail = self._trail(place)
            except Damaged as error:
                log.warning(_UNUSABLE, place.name, error)
                aside = self.path / (place.name + DAMAGED)
                shutil.rmtree(aside, ignore_errors=True)
                self.folder(place).rename(aside)
                continue
            self._clear(place)
            return trail
        if any(self.path.glob("*" + DAMAGED)):
            raise RunError(f"no checkpoint in {self.path} can be used: remove that folder to start again")
        return []

    def newest_task(self) -> Place | None:
        """Return the newest intact checkpoint of a finished task; None before the first."""
        for place in reversed([place for place in self.places() if place.whole and place.task]):
            try:
                verify(self.folder(place))
                return place
            except Damaged as error:
                log.warning(_UNUSABLE, place.name, error)
        return None

    def _trail(self, place: Place) -> list[Place]:
        trail = [*filter(None, map(Place.of, _body(self.folder(place))["on"])), place]
        for part in trail:
            try:
                verify(self.folder(part))
            except Damaged as error:
                raise Damaged(str(error) if part == place else f"{part.name}: {error}") from None
        return trail


def commit(folder: Path, write: Callable[[Path], object], on: Sequence[str] = ()) -> None:
    """Make ``folder`` a checkpoint of the files that ``write`` puts into the empty folder it is called with.

    Args:
        on: names of the checkpoints that it builds on.

    Raises:
        UserError: something is at ``folder`` already.
        OSError: the disk is full or fails; or whatever ``write`` raises. Nothing is left of the new folder then.
    """
    with stage(folder) as made:
        fill(made, write, on)
        settle(made, folder)


def fill(folder: Path, write: Callable[[Path], object], on: Sequence[str] = ()) -> None:
    """Write an empty folder's files and their manifest, flushed to the disk. Arguments and errors: as for ``commit``.

    The manifest leaves out folders inside it: ``write`` fills these itself.
    """
    write(folder)
    written = sorted(path for path in folder.iterdir() if path.is_file())
    with ThreadPoolExecutor(4) as pool:  # hashing does not wait for the disk
        synced = pool.map(sync, written)
        signed = [file for file in written if file.name not in UNSIGNED]
        files = dict(zip((file.name for file in signed), pool.map(_entry, signed), strict=True))
        list(synced)  # raises what went wrong
    (folder / MANIFEST).write_bytes(_manifest(files, on))
    sync(folder / MANIFEST)
    sync(folder)


def amend(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Add new files to a checkpoint, all at once or none. Raises Damaged, and OSError as ``commit`` does."""
    body = _body(folder)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    added = {name: _entry(folder / name) for name in contents}
    write_atomic(folder / MANIFEST, _manifest({**body["files"], **added}, body["on"]))


def identity(folder: Path) -> str:
    """Return a hash of what a checkpoint holds, whatever it keeps of its predecessor. Raises as ``verify`` does."""
    own = {name: entry for name, entry in _body(folder)["files"].items() if not name.startswith(EARLIER)}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def names(folder: Path) -> frozenset[str]:
    """Return the names of a checkpoint's files; others in the folder do not count. Raises as ``verify`` does."""
    return frozenset(_body(folder)["files"])


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return "bytes" and "sha256" of a checkpoint's files, as its manifest has them. Raises as ``verify`` does."""
    return dict(_body(folder)["files"])


def verify(folder: Path) -> None:
    """Make sure that each file of a checkpoint is what was written.

    Raises:
        Damaged: there is no manifest, something is not as it says, or the disk has lost it.
        UserError: another version of everclip wrote it.
        OSError: it may not be read.
    """
    for name, entry in _body(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        with _readable(name):
            same = path.stat().st_size == entry["bytes"] and _entry(path) == entry
        if not same:
            raise Damaged(f"{name} is not what was written")


@contextmanager
def checked(folder: Path, remedy: str = "use another copy") -> Iterator[None]:
    """Raise UserError, with a remedy, where this block finds a folder damaged or cannot read it."""
    try:
        yield
    except Damaged as error:
        raise UserError(f"{folder} is damaged ({error}): {remedy}") from error
    except (OSError, Unreadable) as error:
        raise UserError(f"{folder} cannot be read ({error}): {remedy}") from error


def _body(folder: Path) -> dict[str, Any]:
    """Read what the manifest says. Raises as ``verify`` does."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Damaged(f"it has no {MANIFEST}")
    with _readable(MANIFEST):
        content = path.read_bytes() if path.stat().st_size <= JSON_BYTES else b""
    try:
        body = parse_json(content)["checkpoint"]
        form, named, sizes = body["format"], [*body["files"], *body["on"]], body["files"].values()
        plain = all(Path(name).name == name for name in named) and all(entry["bytes"] >= 0 for entry in sizes)
        plain = plain and content == _rendered(body)
    except (ValueError, LookupError, TypeError, AttributeError):
        plain, form, body = False, FORMAT, {}
    if not plain:
        raise Damaged(f"{MANIFEST} is not what was written")
    if form != FORMAT:
        version = body.get("everclip")
        raise UserError(f"{folder} has format {form}, not {FORMAT}: continue it with everclip {version}")
    return body


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise Damaged where the disk has lost what it should hold; other errors of reading stay."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Damaged(f"{name} cannot be read from the disk") from error


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _manifest(files: Mapping[str, Any], on: Sequence[str]) -> bytes:
    return _rendered({"everclip": __version__, "files": files, "format": FORMAT, "on": [*on]})


def _rendered(body: Any) -> bytes:
    """Return the manifest's bytes."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"checkpoint": body, "sha256": digest}, sort_keys=True, indent=1).encode() + b"\n"
