"""Manage a sweep's folder, whose run directories are identified by the content of their configs, not by name.

out/gdro_m500_s0/     a run directory; with config.toml and results.json it counts as finished
out/logs/NAME.log     output of the run's command
out/tune/NAME/        a search of --tune
out/sweep.json        the command, the cells with their runs, and the failures
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from everclip._version import __version__
from everclip.config.sources import read_toml
from everclip.errors import UserError
from everclip.runs import schema
from everclip.runs.finished import natural
from everclip.runs.run import HOLDER, Run
from everclip.sweep.grid import Cell, Job, content_key
from everclip.system import trust
from everclip.system.atomic import write_atomic
from everclip.system.kinds import mapped, table, text
from everclip.system.reading import Unreadable, diverted, read_json
from everclip.system.text import cleaned

log = logging.getLogger("everclip")

SCHEMA = 1
_RECORD = table({"schema": lambda value: value == SCHEMA}, {"failed": mapped(text, 10**6)})
"""What is read of sweep.json."""
LONGEST = 239
"""Longest name, in one-byte characters, with which ``tune-NAME_123456.log`` stays within a file system's 255."""
State = Literal["finished", "unfinished", "failed", "waiting"]


class Found(NamedTuple):
    """A run directory of the folder."""

    path: Path
    finished: bool


class Folder:
    """A sweep's folder. A context manager that locks it against a second sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures: dict[str, str] = {}
        """The one-line error of each failed run or search, by key."""
        self.damaged: dict[str, str] = {}
        """What is wrong with results that cannot be read, by the key of their run."""
        self._lock = FileLock(path / ".sweep.lock", timeout=0)
        self._found: dict[str, Found] = {}
        self._names: dict[str, str] = {}

    def __enter__(self) -> Folder:
        inside = (path for name in ("logs", "tune") for path in (self.path / name).glob("*"))
        written = (str(path.relative_to(self.path)) for path in inside)
        hold(self._lock, self.path, "sweep", (".sweep.lock", "logs", "tune", "slurm", *written))
        return self

    def __exit__(self, *failure: object) -> None:
        self._lock.release()

    def scan(self, jobs: Sequence[Job]) -> None:
        """Find the runs in the folder, and choose a directory for each of ``jobs``.

        Raises:
            UserError: ``out`` is a file or itself a run directory.
        """
        if (self.path / "config.toml").exists() or (self.path.exists() and not self.path.is_dir()):
            raise UserError(
                f"out={self.path} is not a folder of runs: for a sweep, out holds the run directories"
            )
        self.failures = self._read().get("failed", {})
        self._found, self._names, self.damaged = {}, {}, {}
        inside = list(self.path.iterdir()) if self.path.is_dir() else []
        for folder in sorted(inside, key=lambda folder: natural(folder.name)):
            if os.path.isfile(folder / "config.toml"):  # False, too, for a folder that may not be read
                self._take(folder)
        self.name(jobs)

    def name(self, jobs: Sequence[Job]) -> None:
        """Choose a directory for each of ``jobs`` that has none."""
        inside = self.path.iterdir() if self.path.is_dir() else ()
        taken = {"logs", "tune", *(path.name for path in inside), *self._names.values()}
        for job in jobs:
            if job.key in self._names:
                continue
            known = self._found.get(job.key)
            name = job.name if known is None else known.path.name
            if known is None and (name in taken or len(name) >= 200):
                name = named(name, job.key)
            self._names[job.key] = name
            taken.add(name)

    def superseded(self, jobs: Sequence[Job]) -> list[str]:
        """Return the names of finished runs with settings that a search chose, but none of ``jobs`` has."""
        keys = {job.key for job in jobs}
        known = [run.path for key, run in self._found.items() if run.finished and key not in keys]
        return [path.name for path in known if "tuned_on" in read_toml(path / "config.toml")]

    def free(self, job: Job) -> Path:
        """Return a directory for a job that no run has."""
        taken = len(job.name) >= 200 or (self.path / job.name).exists()
        return self.path / (named(job.name, job.key) if taken else job.name)

    def _take(self, folder: Path) -> None:
        """Note a run directory; of several with the same content, prefer a finished one."""
        try:
            with trust.reading():
                key = content_key(Run.read_config(folder))
        except UserError as error:
            log.warning("%s is not touched: %s", folder, error)
            return
        finished, wrong = (folder / "results.json").is_file(), ""
        if finished:
            try:
                schema.read(folder / "results.json")
            except UserError as error:
                finished, wrong = False, str(error)
        if finished or key not in self._found:
            self._found[key] = Found(folder, finished)
            self.damaged.pop(key, None)
            if wrong:
                self.damaged[key] = wrong

    def _read(self) -> dict[str, Any]:
        try:
            found = cleaned(read_json(self.path / "sweep.json"))
        except Unreadable:
            return {}
        return found if _RECORD(found) else {}

    def write(
        self,
        command: Sequence[str],
        jobs: Sequence[Job],
        held: Sequence[tuple[Path, str, Sequence[Cell]]] = (),
    ) -> None:
        """Write sweep.json.

        Args:
            held: a directory, the name of a search, and the cells that wait for it.
        """
        cells = [{**cell.values, "run": self.place(job).name} for job in jobs for cell in job.cells]
        cells += [
            {**cell.values, "run": run.name, "search": name} for run, name, some in held for cell in some
        ]
        values: dict[str, Any] = {
            "schema": SCHEMA,
            "everclip": __version__,
            "command": list(command),
            "cells": cells,
            "failed": self.failures,
        }
        write_atomic(self.path / "sweep.json", json.dumps(values, ensure_ascii=False, indent=1) + "\n")

    def place(self, job: Job) -> Path:
        """Return the run directory of a job, whether it exists or not."""
        return self.path / self._names[job.key]

    def state(self, job: Job) -> State:
        """Return the state of a job; a failed one has an entry in ``failures``."""
        if (self.place(job) / "results.json").is_file():
            return "failed" if job.key in self.damaged else "finished"
        if job.key in self.failures:
            return "failed"
        return "unfinished" if (self.place(job) / "config.toml").is_file() else "waiting"

    def command(self, job: Job) -> list[str]:
        """Return the words of the ``everclip`` command that begins or continues a job."""
        place = self.place(job)
        if (place / "config.toml").is_file():
            values = read_toml(place / "config.toml")
            return ["resume", str(place), *trust.passed_on(place, values)]
        return ["train", *job.words, f"out={place}", *trust.passed_on()]

    def log(self, name: str) -> Path:
        """Return the file for a command's output."""
        logs = self.path / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"{name}.log"


def named(name: str, key: str) -> str:
    """Return a name followed by the start of a key, cut so that ``tune-NAME.log`` can be a file's name, too."""
    return f"{name[:LONGEST]}_{key[:6]}"


def hold(lock: FileLock, path: Path, what: str, names: Sequence[str]) -> None:
    """Make the folder ``path`` and take its lock.

    Args:
        what: what works in such a folder, for the message.
        names: of the files and folders that it will have, which must not lead out of it.

    Raises:
        UserError: another process works in it, or it cannot be used.
    """
    if wrong := diverted(path, names):
        raise UserError(f"out={path} cannot be used, as {wrong}: give another out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{path} is in use by another {what}: wait, or give another out") from None
    except OSError as error:
        raise UserError(f"out={path} cannot be used ({error.strerror}): give another out") from error


def busy(run: Path) -> bool:
    """Return whether another process works in a run directory."""
    if not (run / ".lock").exists() or diverted(run, [".lock"]):
        return False
    try:
        with FileLock(run / ".lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True


_DROPPED = ".checkpoints.dropped"
"""Checkpoints are renamed to this before they are removed, so that a killed process leaves no partial ones."""


def drop_checkpoints(run: Path, ended: bool = False) -> int:
    """Remove the checkpoints of a finished run that no process works in; return the bytes freed. Raises OSError.

    Args:
        ended: the run will not go on, whether it has finished or not.
    """
    if (
        not (ended or (run / "results.json").is_file())
        or busy(run)
        or diverted(run, ("checkpoints", _DROPPED))
    ):
        return 0
    kept, going = run / "checkpoints", run / _DROPPED
    if going.exists():
        shutil.rmtree(going)
    if not kept.is_dir():
        return 0
    size = sum(file.lstat().st_size for file in kept.rglob("*") if not file.is_dir())
    kept.rename(going)
    shutil.rmtree(going)
    return size


def tidy(run: Path) -> None:
    """Remove a killed process's note of itself from a run directory that no process works in."""
    if not busy(run):
        (run / HOLDER).unlink(missing_ok=True)
