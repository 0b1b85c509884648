"""Which runs paths name, and where each stands."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everclip.runs.find import State, counted, failure, find, last_error, not_begun, state
from everclip.runs.read import RunData, read_run
from everclip.sweep.folder import Folder
from tests.report.synthetic import write_run


def unfinished(folder: Path) -> RunData:
    """A run stopped after its first task of two."""
    write_run(folder, tasks=2, per_task=3, steps=4)
    (folder / "results.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(k for k, line in enumerate(lines) if '"event": "stage"' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[: first + 1]))
    return read_run(folder)


def test_runs_folders_and_patterns_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s10", "s2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").write_text("")
    (tmp_path / "runs" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = [Path("runs/s2"), Path("runs/s10")]
    assert find(["runs"]).runs == paths
    found = find(["runs/*", "runs/s2", "runs", Path("runs")])
    assert found.runs == paths
    assert found.skipped == [
        '"runs/notes" is not a run directory (no results.json, metrics.jsonl or config.toml): give a run'
        " directory"
    ]
    assert find(["x*"]).skipped == ['"x*" matches nothing']
    assert find(["runs/s3"]).skipped == ['"runs/s3" does not exist: give a run directory']
    assert find(["runs", "x"]).sweeps == []


def test_folders_of_runs_beside_a_run_are_named(tmp_path: Path) -> None:
    for run in ("x", "swept/a", "several/b"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.toml").write_text("")
    (tmp_path / "notes").mkdir()
    found = find([tmp_path])
    assert found.runs == [tmp_path / "x"]
    assert found.skipped == [
        f'"{tmp_path / name}" is a folder of runs beside runs: name it, too' for name in ("several", "swept")
    ]
    assert len(find([tmp_path, tmp_path / "several", tmp_path / "swept"]).runs) == 3


@pytest.mark.parametrize("name", ["s[1]", "s*", "s?"])
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, name: str) -> None:
    for run in (name, "s1"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.toml").write_text("")
    assert find([tmp_path / name]).runs == [tmp_path / name]
    assert find([tmp_path / "s[0-9]"]).runs == [tmp_path / "s1"]


def test_a_folder_that_may_not_be_looked_into_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("mine", "theirs"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.toml").write_text("")
    stat = os.stat

    def refusing(path: Path, **options: Any) -> os.stat_result:  # as to a user who is not root
        if os.path.dirname(path) == str(tmp_path / "theirs"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    listed = Path.iterdir

    def closed(path: Path) -> Iterator[Path]:
        if path == tmp_path / "theirs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "stat", refusing)
    monkeypatch.setattr(Path, "iterdir", closed)
    assert find([tmp_path]).runs == [tmp_path / "mine"]
    found = find([tmp_path / "mine", tmp_path / "theirs"])
    assert (found.runs, found.others) == ([tmp_path / "mine"], [tmp_path / "theirs"])
    Folder(tmp_path).scan([])  # nor does it end a sweep


def test_what_a_sweep_keeps_beside_its_runs_is_no_mistake(tmp_path: Path) -> None:
    for name in ("a", "logs", "tune"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "config.toml").write_text("")
    (tmp_path / "sweep.json").write_text("{}")
    found = find(sorted(tmp_path.iterdir()))  # as a shell writes runs/*
    assert (found.runs, found.skipped, found.sweeps) == ([tmp_path / "a"], [], [tmp_path])
    assert find([tmp_path]).sweeps == [tmp_path]
    assert find([tmp_path / "a"]).sweeps == []  # the others were not asked for


def test_states(tmp_path: Path) -> None:
    run = unfinished(tmp_path / "r")
    assert state(run) == State("stopped", "stopped after 1 of 2 tasks")
    log = tmp_path / "logs" / "r.log"
    log.parent.mkdir()
    log.write_text("task 1\nerror: the loss is nan\n\n")
    assert state(run) == State("failed", "failed after 1 of 2 tasks: the loss is nan")
    log.write_text("error: the loss is nan\ninterrupted\n")  # it failed once, and was stopped since
    assert state(run).kind == "stopped"
    holder, host = tmp_path / "r" / ".holder", socket.gethostname()
    holder.write_text(f"process {os.getpid()} on {host}\n")
    assert state(run).kind == "running"
    assert state(run).words == f"running (process {os.getpid()} on {host}): 1 of 2 tasks learned so far"
    holder.write_text(f"process {2**22 + 1} on {host}\n")  # above what Linux gives out: it was killed
    assert state(run).kind == "stopped"
    holder.write_text(f"process {2**22 + 1} on another-{host}\n")  # cannot be asked
    assert state(run).kind == "running"
    holder.write_text("what?")
    assert state(run).kind == "stopped"
    write_run(tmp_path / "r", tasks=2, per_task=3, steps=4)
    assert state(read_run(tmp_path / "r")) == State("finished", "finished")


def test_runs_of_a_sweep_that_have_not_begun(tmp_path: Path) -> None:
    cells = [{"method": "gcl", "seed": str(seed), "run": f"gcl_s{seed}"} for seed in range(3)]
    cells.append({"method": "ridge", "memory.budget": "500", "run": "gcl_s1"})  # one run serves two cells
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "cells": cells}))
    (tmp_path / "gcl_s0").mkdir()
    (tmp_path / "gcl_s0" / "config.toml").write_text("")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gcl_s2.log").write_text("error: no such model\n")
    found = find([tmp_path])
    assert not_begun(found.sweeps, found.runs) == [
        ("gcl_s1 (method gcl, seed 1)", State("waiting", "waiting")),
        ("gcl_s2 (method gcl, seed 2)", State("failed", "failed immediately: no such model")),
    ]
    log = tmp_path / "logs" / "gcl_s2.log"
    assert failure(tmp_path / "gcl_s2") == last_error(log, 0) == "no such model"
    with log.open("a") as file:
        begun = file.tell()
        file.write("warning: no space left\n")
    assert last_error(log, begun) == failure(tmp_path / "gcl_s2") == "", "that was an earlier attempt's"
    with log.open("a") as file:
        file.write("error: the disk is full\nleft over by a library\n" + "\n" * 200_000)
    assert last_error(log, begun) == "", "a huge log is not read"
    log.write_text("error: the disk is full\nleft over by a library\n")
    assert last_error(log, 0) == "the disk is full"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [3, {"run": ""}]}'])
def test_a_sweep_json_that_cannot_be_read_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert not_begun([tmp_path], []) == []


def test_counted() -> None:
    states = [State("finished", "")] * 2
    assert counted(states) == "All 2 runs are finished."
    assert counted(states[:1]) == "The run is finished."
    others = [State("running", ""), State("failed", ""), State("failed", ""), State("waiting", "")]
    assert counted(states + others) == (
        "2 of 6 runs are finished; 1 is running, 2 have failed, 1 is waiting."
    )
