"""Find the runs of a report and their progress; a sweep's folder also lists runs that have not started."""

from __future__ import annotations

import glob
import logging
import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from everclip.runs.finished import Finished, natural, read
from everclip.runs.read import RunData, holds_runs, is_run, no_run
from everclip.runs.words import listed, several
from everclip.system.kinds import table
from everclip.system.reading import Unreadable, open_regular, read_json, read_text
from everclip.system.text import cleaned

log = logging.getLogger("everclip")

Place = str | os.PathLike[str]
Kind = Literal["finished", "running", "stopped", "failed", "waiting"]
_OF_A_SWEEP = {"sweep.json", "logs", "tune"}
_TAIL = 100_000
"""Bytes to read at the end of a log."""


class State(NamedTuple):
    """The state of a run, in one word and in a sentence."""

    kind: Kind
    words: str


@dataclass
class Found:
    """The runs that paths, folders and patterns name."""

    # run directories, finished or not, by their resolved paths
    known: dict[Path, Path] = field(default_factory=dict)
    nothing: list[str] = field(default_factory=list)  # a line per pattern that matches nothing
    others: list[Path] = field(default_factory=list)  # paths that are not runs
    sweeps: list[Path] = field(default_factory=list)  # folders of sweeps that were named as a whole

    @property
    def runs(self) -> list[Path]:
        """The distinct run directories."""
        return [*self.known.values()]

    @property
    def skipped(self) -> list[str]:
        """A line per path that is not a run."""
        return [*self.nothing, *map(no_run, self.others)]


def find(paths: Iterable[Place]) -> Found:
    """Return the run directories among paths, inside folders, and matched by patterns such as ``"runs/*"``."""
    found = Found()
    for given in paths:
        path = os.path.expanduser(os.fspath(given))
        pattern = glob.has_magic(path) and not os.path.lexists(path)  # a name may have brackets
        matches = sorted(glob.glob(path), key=natural) if pattern else [path]
        if not matches:
            found.nothing.append(f'"{path}" matches nothing')
        for match in matches:
            _take(Path(match), found)
    return found


def find_runs(paths: Iterable[Place]) -> list[Finished]:
    """Return the distinct finished runs of ``find``, sorted by path (numbers as numbers).

    Raises:
        UserError: a results.json or config.toml cannot be read.
    """
    found = find(paths)
    open_ = [path for path in found.runs if not (path / "results.json").is_file()]
    done = [path for path in found.runs if path not in open_]
    for line in found.nothing:
        log.warning("%s", line)
    if open_:
        log.warning("not finished, left out: %d of %d runs, %s", len(open_), len(found.runs), listed(open_))
    gone = [path for path in found.others if not os.path.lexists(path)]
    if gone:
        log.warning("not found, left out: %s", listed(gone))
    if others := [path for path in found.others if path not in gone]:
        log.warning("not a run, left out: %s", listed(others))
    return [read(path) for path in sorted(done, key=lambda path: natural(str(path)))]


def _take(path: Path, found: Found) -> None:
    if is_run(path):
        found.known.setdefault(path.resolve(), path)
        return
    swept = os.path.isfile(path / "sweep.json")  # unlike Path's, False where the folder may not be read
    try:
        inside = [folder for folder in path.iterdir() if is_run(folder)] if path.is_dir() else []
    except PermissionError:
        inside = []
    if path.name in _OF_A_SWEEP and os.path.isfile(path.parent / "sweep.json"):
        if path.name == "sweep.json":  # a shell's runs/* also names what the sweep keeps beside its runs
            found.sweeps.append(path.parent)
    elif inside or swept:
        for folder in sorted(inside, key=lambda folder: natural(folder.name)):
            _take(folder, found)
        found.sweeps += [path] * swept
        found.others += [] if swept else sorted(folder for folder in path.iterdir() if holds_runs(folder))
    else:
        found.others.append(path)


def state(run: RunData) -> State:
    """Return the state of a run: running while the process that its directory names is alive, failed where the last
    line of its sweep's log is an error."""
    if run.finished:
        return State("finished", "finished")
    done = f"{len(run.accuracy)} of {several(len(run.tasks), 'task')}" if run.tasks else "no task"
    holder = _holder(run.path)
    if holder:
        return State("running", f"running ({holder}): {done} learned so far")
    error = failure(run.path)
    if error:
        return State("failed", f"failed after {done}: {error}")
    return State("stopped", f"stopped after {done}")


def failure(run: Path) -> str:
    """Return the error on the last line of a run's log in its sweep, if any."""
    return last_error(run.parent / "logs" / f"{run.name}.log")


def last_error(log: Path, start: int | None = None) -> str:
    """Return the last error in a command's log; empty without any.

    Args:
        start: the bytes that earlier commands have written. None: unknown, so only the last line counts, as an error
            above it may be an earlier command's.
    """
    try:
        with open_regular(log) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start or 0, size - _TAIL))
            lines = file.read(_TAIL).decode("utf-8", errors="replace").split("\n")
    except (OSError, Unreadable):
        return ""
    lines = [line for line in lines if line.strip()]
    told = (
        line for line in reversed(lines if start is not None else lines[-1:]) if line.startswith("error: ")
    )
    return next(told, "").removeprefix("error: ")


def _holder(path: Path) -> str:
    """Return the process that works in a run directory, if any."""
    try:
        match = re.search(r"process (\d{1,9}) on (\S+)", read_text(path / ".holder", 1000))
    except Unreadable:
        return ""
    if match is None or (match[2] == socket.gethostname() and not _alive(int(match[1]))):
        return ""
    return match[0]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True


def not_begun(sweeps: Sequence[Path], runs: Sequence[Path]) -> list[tuple[str, State]]:
    """Return name and state of the sweeps' runs without a directory: waiting, or failed at once."""
    known = {run.resolve() for run in runs}
    missing: dict[Path, tuple[str, State]] = {}
    for folder in sweeps:
        for cell in _cells(folder):
            path = folder / cell["run"]
            place = Path(os.path.realpath(path))  # unlike resolve(), it follows no circle of links
            if place not in known:
                values = ", ".join(
                    f"{key} {value}" for key, value in cell.items() if key not in ("run", "search")
                )
                name, where = f"{path.name} ({values})" if values else path.name, State("waiting", "waiting")
                if error := failure(path):
                    where = State("failed", f"failed immediately: {error}")
                elif error := failure(folder / f"tune-{cell['search']}") if "search" in cell else "":
                    where = State("failed", f"its search failed: {error}")
                missing.setdefault(place, (name, where))
    return list(missing.values())


def _cells(folder: Path) -> list[dict[str, Any]]:
    """Return the cells of sweep.json that name a run in its folder; the sweep may be writing it."""
    try:
        cells = cleaned(read_json(folder / "sweep.json"))["cells"]
    except (Unreadable, KeyError, TypeError):
        return []
    return [cell for cell in cells if _CELL(cell)] if isinstance(cells, list) else []


def _name(value: Any) -> bool:
    """Accept the name of something in a folder, which leads nowhere else."""
    return isinstance(value, str) and "/" not in value and value not in ("", ".", "..")


_CELL = table({"run": _name}, {"search": _name})


def counted(states: Iterable[State]) -> str:
    """Return ``12 of 20 runs are finished; 1 is running, 1 has failed, 6 are waiting``."""
    kinds: list[str] = [state.kind for state in states]
    verbs = {
        "running": ("is running", "are running"),
        "stopped": ("has stopped early", "have stopped early"),
        "failed": ("has failed", "have failed"),
        "waiting": ("is waiting", "are waiting"),
    }
    others = [f"{number} {verb[number > 1]}" for kind, verb in verbs.items() if (number := kinds.count(kind))]
    done = kinds.count("finished")
    if not others:
        return f"All {done} runs are finished." if done > 1 else "The run is finished."
    return f"{done} of {len(kinds)} runs are finished; {', '.join(others)}."
