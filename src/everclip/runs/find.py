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
from everclip.runs.read import RunData, is_run, no_run
from everclip.runs.words import several
from everclip.system.reading import Unreadable, open_regular, read_json, read_text

log = logging.getLogger("everclip")

Place = str | os.PathLike[str]
Kind = Literal["finished", "running", "stopped", "failed", "waiting"]
_OF_A_SWEEP = {"sweep.json", "logs", "tune"}
_TAIL = 100_000
"""Number of bytes read at the end of a log."""


class State(NamedTuple):
    """The state of a run, in one word and in a sentence."""

    kind: Kind
    words: str


@dataclass
class Found:
    """The runs that paths, folders and patterns name.

    Args:
        known: run directories, finished or not, by where they really are.
        nothing: a line for each pattern that matches nothing.
        others: paths that are no run.
        sweeps: folders of sweeps that were named as a whole.
    """

    known: dict[Path, Path] = field(default_factory=dict)
    nothing: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)

    @property
    def runs(self) -> list[Path]:
        """The run directories, each once."""
        return [*self.known.values()]

    @property
    def skipped(self) -> list[str]:
        """A line for each path that is no run."""
        return [*self.nothing, *map(no_run, self.others)]


def find(paths: Iterable[Place]) -> Found:
    """Run directories, the runs inside of folders, and what patterns such as ``"runs/*"`` match."""
    found = Found()
    for given in paths:
        path = os.path.expanduser(os.fspath(given))
        matches = sorted(glob.glob(path), key=natural) if glob.has_magic(path) else [path]
        if not matches:
            found.nothing.append(f'"{path}" matches nothing')
        for match in matches:
            _take(Path(match), found)
    return found


def find_runs(paths: Iterable[Place]) -> list[Finished]:
    """Return the finished runs that paths, folders and patterns name, each once, sorted by path (numbers as numbers).

    Raises:
        UserError: a results.json or config.toml cannot be read.
    """
    found = find(paths)
    finished = {path: (path / "results.json").is_file() for path in found.runs}
    open_ = [path for path, done in finished.items() if not done]
    for line in found.nothing:
        log.warning("%s", line)
    if open_:
        log.warning("not finished, left out: %d of %d runs, %s", len(open_), len(found.runs), _some(open_))
    if found.others:
        log.warning("no run, left out: %s", _some(found.others))
    return [read(path) for path in sorted(finished, key=lambda path: natural(str(path))) if finished[path]]


def _some(paths: Sequence[Path]) -> str:
    more = f", and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(map(str, paths[:5])) + more


def _take(path: Path, found: Found) -> None:
    if is_run(path):
        found.known.setdefault(path.resolve(), path)
    elif path.name in _OF_A_SWEEP and (path.parent / "sweep.json").is_file():
        if path.name == "sweep.json":  # a shell's runs/* names what the sweep keeps beside its runs, too
            found.sweeps.append(path.parent)
    elif path.is_dir() and (inside := [folder for folder in path.iterdir() if is_run(folder)]):
        for folder in sorted(inside, key=lambda folder: natural(folder.name)):
            _take(folder, found)
        if (path / "sweep.json").is_file():
            found.sweeps.append(path)
    elif (path / "sweep.json").is_file():
        found.sweeps.append(path)
    else:
        found.others.append(path)


def state(run: RunData) -> State:
    """Say where a run stands. It is running while the process that its directory names is alive, and failed where the
    line of a sweep's log is an error."""
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
    """Return the error with which a sweep's run ended last; empty where it did not."""
    try:
        with open_regular(run.parent / "logs" / f"{run.name}.log") as file:
            file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read(_TAIL).decode("utf-8", errors="replace").split("\n")
    except (OSError, Unreadable):
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ") if last.startswith("error: ") else ""


def _holder(path: Path) -> str:
    """Return the process that works in a run directory; empty where there is none, or where it is gone."""
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
    """Return (name with its values, state) of a sweep's runs that have no directory yet: waiting, or failed at once."""
    known = {run.resolve() for run in runs}
    missing: dict[Path, tuple[str, State]] = {}
    for folder in sweeps:
        for cell in _cells(folder):
            path = folder / str(cell.get("run") or ".")
            if path != folder and path.resolve() not in known:
                values = ", ".join(f"{key} {value}" for key, value in cell.items() if key != "run")
                error = failure(path)
                where = (
                    State("failed", f"failed immediately: {error}") if error else State("waiting", "waiting")
                )
                missing.setdefault(
                    path.resolve(), (f"{path.name} ({values})" if values else path.name, where)
                )
    return list(missing.values())


def _cells(folder: Path) -> list[dict[str, Any]]:
    """Return the cells of sweep.json, as far as they can be read: it may be written at this moment."""
    try:
        cells = read_json(folder / "sweep.json")["cells"]
    except (Unreadable, KeyError, TypeError):
        return []
    return [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []


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
