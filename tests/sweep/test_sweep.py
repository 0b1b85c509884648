"""Sweeps: real ones, on a toy model."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from everclip.cli.app import main
from everclip.config import config_hash, load_config
from everclip.errors import UserError
from everclip.methods.base.registry import method_class
from everclip.runs.find import not_begun
from everclip.runs.run import Run
from everclip.sweep import pool, searches, slots, trials
from everclip.sweep.folder import Folder, busy, drop_checkpoints
from everclip.sweep.pool import GRACE, Child, Work
from everclip.sweep.session import Session
from everclip.sweep.tune import split, tune
from everclip.sweep.view import Follow, FollowSearch, View
from everclip.training import pace
from everclip.training.plan import Plan
from tests.pictures import image_folder
from tests.running import run

SMALL = ["scenario.tasks=3", "train.epochs=1", "train.batch_size=8", "device=cpu"]


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", *SMALL]


def started(tokens: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "everclip", "sweep", *tokens]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + 300
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < deadline, f"{text} is not in {file}"
        time.sleep(0.1)


def finished(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/results.json")}


@pytest.mark.slow
def test_a_sweep_uses_what_is_there_and_shares_runs(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One run by hand under another name, one as bare results, one that was stopped: only that one is run."""
    out = tmp_path / "s"
    run(out / "by-hand", *tokens, "method=ncm", "memory.budget=99")
    run(out / "bare", *tokens, "method=gcl", "memory.budget=12")
    for path in [*(out / "bare").iterdir()]:
        if path.name not in ("config.toml", "results.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    stopped = out / "stopped"
    run(stopped, *tokens, "method=gcl", "memory.budget=0")
    (stopped / "results.json").unlink()
    (out / "by-hand" / ".holder").write_text("process 1 on one that was killed when it had its results")
    before = finished(out)
    words = ["sweep", *tokens, "method=gcl,ncm", "memory.budget=0,12", f"out={out}"]
    assert main([*words, "--dry-run"]) == 0
    shown, said = capsys.readouterr()
    assert "ncm: one run serves memory.budget=0,12" in said
    assert [line.split()[:2] for line in shown.splitlines()[1:4]] == [
        ["stopped", "unfinished"],
        ["bare", "finished"],
        ["by-hand", "finished"],
    ]
    assert f"1 of 3 runs are missing in {out}" in shown
    assert not (out / "sweep.json").exists()
    assert main([*words, "--print"]) == 0
    assert capsys.readouterr().out.split("\n") == [shlex.join(["everclip", "resume", str(stopped)]), ""]

    assert main(words) == 0
    table, said = capsys.readouterr()
    assert not (out / "by-hand" / ".holder").exists()
    assert "[3/3] stopped: last" in said
    assert "memory.budget = 0" in table
    assert before.items() < finished(out).items()
    assert main([*words, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [Path(cell["run"]).name for cell in cells] == ["stopped", "bare", "by-hand", "by-hand"]
    assert all(cell["state"] == "finished" and cell["last"] is not None for cell in cells)
    assert main(words) == 0
    assert capsys.readouterr().out == table
    assert finished(out).keys() == {"stopped", "bare", "by-hand"}


def test_cells_without_a_form_are_skipped_and_said(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *tokens, "method=gcl,icarl", "memory.budget=0,12", f"out={tmp_path / 's'}", "--dry-run"]
    assert main(words) == 0
    shown, said = capsys.readouterr()
    assert (
        "icarl at memory.budget=0 is skipped: icarl needs exemplars: set memory.budget to 1 or more\n" in said
    )
    assert "3 of 3 runs are missing" in shown
    assert "for what is missing, one run after another (estimated)" in shown
    each = [word.replace("memory.budget", "memory.per_class") for word in words]
    assert main([*each, "--json"]) == 0
    shown, said = capsys.readouterr()
    assert "icarl at memory.per_class=0 is skipped: icarl needs exemplars: set memory.per_class to 1" in said
    assert json.loads(shown)["minutes"] > 0
    assert main([*words[:-4], "method=icarl", "memory.budget=0", "--dry-run"]) == 2
    assert "icarl needs exemplars" in capsys.readouterr().err


@pytest.mark.slow
def test_printed_commands_give_the_sweeps_runs(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *tokens, "method=gcl,ncm", "memory.budget=4,12", f"out={tmp_path / 's'}"]
    assert main([*words, "--print"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(command[-1]).name for command in commands] == ["gcl_m4", "gcl_m12", "ncm_m0"]
    for command in commands:
        assert main(command[1:]) == 0
    capsys.readouterr()
    assert main([*words, "--print"]) == 0
    shown, said = capsys.readouterr()
    assert not shown
    assert "3 of 3 runs are finished" in said


@pytest.mark.slow
def test_failures_are_named_and_retried(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate at which the loss is not finite; the other run is not held up."""
    out = tmp_path / "s"
    words = [
        "sweep",
        *tokens,
        "method=gcl",
        "train.steps=3",
        "train.lr=1e30,1e-4",
        "train.clip_norm=none",
        f"out={out}",
    ]
    words.remove("train.epochs=1")
    assert main(words) == 1
    shown, said = capsys.readouterr()
    assert "gcl_lr1e-4: last" in said
    assert re.search("failed: gcl_lr1e30: .* not finite at step", said.splitlines()[-2])
    assert said.splitlines()[-1] == "the same command with --retry repeats the failed runs"
    assert "gcl" in shown
    assert "starts" in said
    assert main(words) == 1
    again = capsys.readouterr().err
    assert "starts" not in again
    assert re.search("failed: gcl_lr1e30: .* not finite at step", again)
    assert main([*words, "--json"]) == 1
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["state"], bool(cell["error"])) for cell in cells] == [("failed", True), ("finished", False)]
    assert main([*words, "--retry"]) == 1
    assert "gcl_lr1e30: starts" in capsys.readouterr().err
    assert main([*words, "--print"]) == 0
    assert "1 of 2 runs are finished; 1 failed: --retry repeats it" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0
    assert f"0 of 2 runs are missing in {out}; 1 failed: --retry repeats it" in capsys.readouterr().out
    assert main([*words, "--dry-run", "--retry"]) == 0
    assert f"1 of 2 runs are missing in {out}\n" in capsys.readouterr().out
    assert main([*words[:-1], "seed=0,1", f"out={out}"]) == 1
    assert re.findall(r"\[./.\]", capsys.readouterr().err) == ["[3/4]", "[4/4]"]


@pytest.mark.slow
def test_a_full_disk_is_said_and_holds_up_no_run(
    tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure of the first run cannot be noted; the second one is trained."""
    write = Folder.write

    def full(folder: Folder, *asked: Any) -> None:
        if folder.failures:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, *asked)

    monkeypatch.setattr(Folder, "write", full)
    out = tmp_path / "s"
    words = ["train.steps=3", "train.lr=1e30,1e-4", "train.clip_norm=none", f"out={out}", "--jobs", "1"]
    tokens.remove("train.epochs=1")
    assert main(["sweep", *tokens, "method=gcl", *words]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"gcl_lr1e30: failed: .*; sweep\.json cannot be written \(No space left on device\)", said
    )
    assert finished(out).keys() == {"gcl_lr1e-4"}
    told = f"{out} cannot be written (No space left on device): make room; the same command continues"
    assert said.splitlines()[-1] == f"error: {told}"
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_ended_goes_on_to_the_same_table(
    tmp_path: Path, tokens: list[str], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [word for word in tokens if word != "train.epochs=1"]
    grid = ["method=gcl", "memory.budget=12", "train.steps=40", "seed=0..1", "checkpoint.every=steps:5"]
    out, whole = tmp_path / "s", tmp_path / "whole"
    words = [*tokens, *grid]
    process = started([*words, f"out={out}", "--jobs", "2", "--threads", "1"])
    wait_for(out / "gcl_s0" / "metrics.jsonl", '"stage": 1')
    process.send_signal(number)
    _, said = process.communicate(timeout=90)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    if number != signal.SIGKILL:
        assert said.splitlines()[-1].endswith(f"the same command continues the sweep in {out}")
        assert "stopping: gcl_s" in said
    deadline = time.monotonic() + 60
    while any(busy(folder) for folder in out.glob("gcl*")):  # no child outlives its sweep
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "gcl_s0" not in finished(out)
    assert main(["sweep", *words, f"out={out}", "--threads", "1", "--jobs", "2"]) == 0
    table = capsys.readouterr().out.replace(str(out), "OUT")
    assert "continued in task" in (out / "logs" / "gcl_s0.log").read_text()
    if number == signal.SIGKILL:
        for seed in (0, 1):
            assert (
                main(["train", *tokens, *grid[:3], grid[4], f"seed={seed}", f"out={whole / f'gcl_s{seed}'}"])
                == 0
            )
        capsys.readouterr()
        assert main(["sweep", *words, f"out={whole}"]) == 0
        assert capsys.readouterr().out.replace(str(whole), "OUT") == table


@pytest.mark.slow
def test_tuned_values_come_from_the_first_two_tasks(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    words = ["sweep", *tokens, "method=gcl,ncm", "memory.budget=12", "seed=0..1", f"out={out}"]
    words += ["--tune", "lr=1e-5,1e-2", "--tune", "method.gcl.tau=0.05,0.1"]
    assert main([*words, "--print"]) == 0
    command, *plain = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert command[:2] == ["everclip", "tune"]
    assert [words[1] for words in plain] == ["train", "train"]  # ncm is not tuned
    assert "method.tau=0.05,0.1" in command
    assert main(command[1:]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*words, "--print"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 4
    assert f"train.lr={float(found['values']['train.lr'])!r}" in commands[0]
    (out / "tune").joinpath(Path(command[-2].removeprefix("out=")).name).rename(out / "tune" / "of-before")
    assert main([*words, "--print"]) == 0  # known by its content, whatever it is called
    assert len(capsys.readouterr().out.splitlines()) == 4
    other = [word.replace("1e-5,1e-2", "1e-5,1e-3") for word in words]
    assert main([*other, "--print"]) == 0
    assert capsys.readouterr().out.startswith("everclip tune")
    for command in commands:
        assert main(command[1:]) == 0
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    for cell in json.loads(capsys.readouterr().out)["cells"]:
        results = json.loads((Path(cell["run"]) / "results.json").read_text())
        assert results["validation"] is None
        assert results["tuned_on"] == (found["tuned_on"] if cell["values"]["method"] == "gcl" else None)


@pytest.mark.slow
def test_runs_wait_for_their_own_search_alone(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def look(_: View, running: Sequence[Child], waiting: Sequence[Work]) -> None:
        names = [work.name.split("_")[0] for work in [*(child.work for child in running), *waiting]]
        seen.append((names[: len(running)], names[len(running) :]))

    monkeypatch.setattr(View, "look", look)
    words = [
        "sweep",
        *tokens,
        "method=gcl,gdro,ncm",
        "memory.budget=12",
        f"out={tmp_path / 's'}",
        "--jobs",
        "1",
    ]
    assert main([*words, "--tune", "lr=1e-5,1e-2"]) == 0
    shown, said = capsys.readouterr()
    assert (["tune gdro"], ["ncm", "gcl"]) in seen
    begun = [line.removesuffix(": starts").split("_")[0] for line in said.splitlines() if "starts" in line]
    assert begun == ["tune gcl", "tune gdro", "ncm", "gcl", "gdro"]
    counts = [line.partition("]")[0] for line in said.splitlines() if line.startswith("[")]
    assert counts == [f"[{number}/5" for number in range(1, 6)]
    assert "train.lr=" in said
    assert all(method in shown for method in ("gcl", "gdro", "ncm"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune", "lr"], "has no values to choose from"),
        (["--tune", "lr=1e-4"], "has no values to choose from"),
        (["--tune", "lr=1e-4,1e-3", "--tune", "train.lr=1e-5,1e-3"], '"train.lr" is given twice'),
        (["--tune", "seed=0,1"], "is not a setting that can be tuned"),
        (["--tune", "lr=1e-4,fast"], 'train.lr is "fast"'),
        (["--tune", "method.gdro.margin=1,2"], "gdro, which is not in the grid"),
        (["--tune", "train.lr_text=0,1", "train.lr_text=0"], "is given twice"),
        (
            ["--tune", "lr=1e-4,1e-3", "scenario.kind=few-shot", "scenario.shots=1", "scenario.base=2"],
            "--tune: task 2 has one training image of each class",
        ),
        (["--jobs", "0"], "--jobs is 0"),
        (["--slurm-set", "timeout_min=5"], "use --slurm too"),
        (["--slurm", "--print"], "use one of them"),
        (["--slurm", "--dry-run"], "use one of them"),
        (["--print", "--dry-run"], "use one of them"),
        (["--threads", "-1"], "--threads is -1"),
        (["data=imagefolder:nowhere,imagefolder:nothing"], "test/CLASS; data folder nothing does not exist"),
        (["model=local-dir:nowhere"], "nowhere does not exist"),
        (["device=cuda:7"], "device=cuda:7"),
        (["scenario.tasks=7,8"], "scenario.tasks=8"),
        (["method=gcl,gdr"], '1 cell of the grid is invalid: unknown method "gdr"'),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    tmp_path: Path, tokens: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {word.partition("=")[0] for word in words}
    kept = [word for word in tokens if word.partition("=")[0] not in given]
    method = [] if "method" in given else ["method=gcl"]
    assert main(["sweep", *kept, *method, *words, f"out={tmp_path / 's'}"]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1]
    assert not list(tmp_path.glob("s/*/config.toml"))


def test_every_cell_is_planned_with_its_own_settings(tmp_path: Path, toy: str) -> None:
    a, b = (image_folder(tmp_path / name, {"train": 3, "test": 2}, 2, seed=n) for n, name in enumerate("ab"))
    words = [f"model={toy}", "device=cpu", f"out={tmp_path / 's'}"]
    joined = [*words, "data=joined", "scenario.kind=cross-domain"]
    both = f'["{a}", "{b}"]'
    assert len(Session.of([*joined, f"source.of={both}", "method=gcl"]).jobs) == 1
    for more, message in (
        ([*joined, f"source.of={both}", "method=gcl,joint"], "joint learns all tasks at once"),
        ([*joined, f'source.of={both},["{a}", "missing"]', "method=gcl"], '"missing" is neither a source'),
        (
            [
                *words,
                f"data={a}",
                "scenario.tasks=1",
                "scenario.kind=online",
                "method=gcl",
                "train.epochs=1,5",
            ],
            "passes over its images once",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Session.of(more)


def test_every_order_of_classes_is_checked_and_what_all_share_is_said_once(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = image_folder(tmp_path / "photos", {"train": 3, "test": 2})
    for name in ("red", "green"):
        shutil.rmtree(photos / "test" / name)
    words = ["sweep", f"data={photos}", *tokens[1:], "method=gcl,ncm", f"out={tmp_path / 's'}", "--dry-run"]
    assert main([*words, "memory.budget=6,12", "seed=0..1"]) == 0
    assert capsys.readouterr().err.count("2 of 6 classes have no test images") == 1
    words = [*words, "memory.budget=12", "scenario.order=seed"]
    alone = [main([*words, f"seed={seed}"]) for seed in range(6)]
    assert (alone[0], max(alone)) == (0, 2), "some seed has the two in one task"
    capsys.readouterr()
    assert main([*words, "seed=0..5"]) == 2
    assert "has no test images" in capsys.readouterr().err


def test_a_method_that_refuses_the_model(
    tmp_path: Path, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", f"data={photos}", "model=lite", "image_size=32", *SMALL, "method=ncm,cmoa"]
    assert main([*words, f"out={tmp_path / 's'}"]) == 2
    assert "method=cmoa puts adapters into the blocks of a vision transformer" in capsys.readouterr().err
    assert not list(tmp_path.glob("s/*/config.toml"))


def test_two_views_that_would_be_one_are_refused_before_anything_runs(
    tmp_path: Path, tokens: list[str]
) -> None:
    with pytest.raises(UserError, match=r"train\.augment=none makes them the same"):
        Session.of([*tokens, "method=gcl,cassle", "train.augment=none", f"out={tmp_path / 's'}"])


def test_a_folder_that_is_none(tmp_path: Path, tokens: list[str]) -> None:
    run(tmp_path / "x", *tokens, "method=ncm")
    with pytest.raises(UserError, match="is not a folder of runs"):
        Session.of([*tokens, f"out={tmp_path / 'x'}"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder of runs"):
        Session.of([*tokens, f"out={tmp_path / 'file'}"])
    with (
        Folder(tmp_path / "s"),
        pytest.raises(UserError, match="in use by another sweep"),
        Folder(tmp_path / "s"),
    ):
        pass


def test_a_name_that_is_taken_and_the_folder_of_a_command(tmp_path: Path, tokens: list[str]) -> None:
    run(tmp_path / "s" / "ncm", *tokens, "method=ncm", "seed=5")
    (session,) = [Session.of([*tokens, "method=ncm", f"out={tmp_path / 's'}"])]
    (job,) = session.jobs
    assert session.folder.place(job).name == f"ncm_{job.key[:6]}"
    first, second, other = (
        Session.of([*tokens, f"seed={seeds}"]).folder.path for seeds in ("0,1", "1,0", "0..2")
    )
    assert first == second != other


def test_names_of_long_values_are_cut_to_what_a_file_may_be_called(tmp_path: Path, tokens: list[str]) -> None:
    def places(length: int) -> list[str]:
        long = ",".join(f'["{letter * length} {{}}"]' for letter in "aä")
        words = [*tokens, "method=gcl,ncm", f"templates={long}", f"out={tmp_path / 's'}"]
        session = Session.of(words, ["lr=1e-5,1e-4"])
        for search in session.tune:
            session.folder.log(f"tune-{search.name}").touch()
        for job in session.jobs:
            session.folder.log(session.folder.place(job).name).touch()
        return [session.folder.place(job).name for job in session.jobs]

    first, second = places(300)
    assert len(first) == 246
    assert first.startswith("ncm_templates-aaa")
    assert second == "ncm_templates"
    assert places(100)[0] == f"ncm_templates-{'a' * 100}"


# Parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "gpus", "jobs", "threads", "expected"),
    [
        (2, [], None, None, [("1", None)] * 2),
        (8, [], None, 4, [("4", None)] * 2),
        (64, [], None, None, [("4", None)] * 16),
        (8, [], 3, None, [("1", None)] * 3),
        (1, [], None, 4, [("4", None)]),
        (16, ["0", "3"], None, None, [("8", "0"), ("8", "3")]),
        (16, ["0", "3"], 3, None, [("5", "0"), ("5", "3"), ("5", "0")]),
    ],
)
def test_places_for_runs(
    cores: int, gpus: list[str], jobs: int | None, threads: int | None, expected: list[tuple[str, str | None]]
) -> None:
    found = slots.slots(cores, gpus, jobs, threads)
    assert [(slot["OMP_NUM_THREADS"], slot.get("CUDA_VISIBLE_DEVICES")) for slot in found] == expected


def test_a_gpu_is_given_only_to_runs_that_take_any() -> None:
    assert slots.gpus(["cpu", "auto"]) == []
    assert slots.gpus(["cuda:1"]) == []
    assert slots.accelerators(["auto", "cpu", "cuda", "cuda:1", "mps"]) == {"cuda:1", "mps"}
    assert [slot["OMP_NUM_THREADS"] for slot in slots.slots(16, [], 1, 16)] == ["16"]


def test_a_search_has_the_device_of_its_cells(tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two GPUs; while every run waits for a search, no run says which device it wants."""
    places: list[slots.Environment] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Session, "run", lambda session, slots, *_: places.extend(slots))
    free = [word for word in tokens if not word.startswith("device=")]
    for device, given in (("cpu", None), ("cuda:1", None), ("auto", "0")):
        places.clear()
        main(["sweep", *free, f"device={device}", "method=gcl", "--tune", "lr=1e-5,1e-4", "--jobs", "1"])
        assert [place.get("CUDA_VISIBLE_DEVICES") for place in places] == [given]


class Quiet(pool.Watcher):
    """Notes what ended."""

    def __init__(self) -> None:
        self.errors: dict[str, str | None] = {}

    def ended(self, child: Child, error: str | None) -> None:
        self.errors[child.work.name] = error


@pytest.mark.slow
def test_why_a_command_failed(tmp_path: Path) -> None:
    works = [
        Work(words[0], words, tmp_path / words[0], tmp_path / f"{words[0]}.log")
        for words in (["methods"], ["resume", "x"])
    ]
    watcher = Quiet()
    pool.run(works, slots.slots(2, [], 2, 1), watcher)
    assert watcher.errors["methods"] is None
    assert watcher.errors["resume"] is not None
    assert watcher.errors["resume"].startswith("x is not a run directory")


def test_a_killed_command_is_told_from_a_stopped_one(tmp_path: Path) -> None:
    child = Child(Work("x", ["methods"], tmp_path, tmp_path / "log"), {})
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    assert child.ended()
    assert child.error() == "ended by SIGKILL, perhaps out of memory: try a smaller --jobs"
    child = Child(Work("x", ["methods"], tmp_path, tmp_path / "log"), {})
    pool.stop([child])
    assert child.error() is None
    (tmp_path / "log").write_text("error: of an earlier attempt\n")
    child = Child(Work("x", ["methods"], tmp_path, tmp_path / "log"), {})
    pool.stop([child])
    child.process.returncode = 3
    assert child.error() == f"exit code 3: see {tmp_path / 'log'}"


def test_a_run_is_followed_as_its_log_grows(tmp_path: Path) -> None:
    follow, log = Follow(tmp_path), tmp_path / "metrics.jsonl"
    assert follow.look() == "starting"
    start = '{"event": "start", "tasks": [1, 2, 3]}\n'
    log.write_text(start + '{"event": "step", "global_step": 6}\n{"event": "sta')
    assert follow.look() == "task 1 of 3, step 7"
    log.write_text(start + '{"event": "step", "global_step": 6}\n{"event": "stage", "stage": 0}\nx\n[]\n')
    assert follow.look() == "task 2 of 3, step 7"
    log.write_text(start)  # cut back by a resume
    assert follow.look() == "task 1 of 3, step 0"
    log.write_text(start + '{"event": "stage", "stage": 2}\n')
    assert follow.look() == "finishing"


def test_a_search_is_followed_through_its_trials(tmp_path: Path) -> None:
    follow = FollowSearch(tmp_path)
    assert follow.look() == "starting"
    for n, name in enumerate(("trial-b", "trial-a"), 1):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").touch()
        os.utime(tmp_path / name / "config.toml", (n, n))
        (tmp_path / name / "metrics.jsonl").write_text('{"event": "start", "tasks": [1, 2]}\n')
        assert follow.look() == f"trial {n}, task 1 of 2, step 0"


def test_results_that_are_damaged_fail_their_run_alone(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *tokens, "method=ncm,ridge", f"out={tmp_path / 's'}", "--jobs", "1"]
    assert main(words) == 0
    (tmp_path / "s" / "ncm" / "results.json").write_text("{")
    shutil.rmtree(tmp_path / "s" / "ridge")
    assert main([*words, "--retry"]) == 1
    said = capsys.readouterr().err
    assert finished(tmp_path / "s").keys() == {"ncm", "ridge"}
    assert re.search(r"ncm.results\.json.* cannot be read as results.*restore it", said), said
    assert "Traceback" not in said
    (tmp_path / "s" / "ncm" / "results.json").unlink()
    assert main([*words, "--retry"]) == 0


def test_the_time_left(tmp_path: Path) -> None:
    works = [Work(name, [], tmp_path, tmp_path) for name in ("gcl 1", "gcl 2", "ewc 1")]
    known = {"gcl": [10.0, 20.0], "ncm": [1.0]}
    view = View(lambda: 5, 2, known, lambda work: work.name.split()[0], lambda work, error: (True, ""))
    view.look([], works)
    assert view.seconds_left([], works) == pytest.approx(15 + 15 + 31 / 3)
    assert view.seconds_left([], [Work("search 1", [], tmp_path, tmp_path)]) == 0, "searches take other times"
    view = View(lambda: 5, 2, {}, lambda work: "", lambda work, error: (True, ""))
    assert view.seconds_left([], works) is None


def test_one_search_for_cells_that_differ_in_the_seed_alone(tmp_path: Path, tokens: list[str]) -> None:
    words = [*tokens, "method=gcl,gdro,ncm", "method.gdro.margin=0.1,0.3", "memory.budget=0,12", "seed=0,1"]
    session = Session.of([*words, f"out={tmp_path / 's'}"], ["lr=1e-5,1e-4"])
    assert [search.name.rsplit("_", 1)[0] for search in session.searches] == [
        *("gcl_m0", "gcl_m12"),
        *("gdro_margin0.1_m0", "gdro_margin0.1_m12", "gdro_margin0.3_m0", "gdro_margin0.3_m12"),
    ]
    assert [len(search.cells) for search in session.searches] == [2] * 6
    assert "memory.budget=12" in session.searches[1].command()
    assert {job.config.method.name for job in session.jobs} == {"ncm"}  # ncm trains nothing; the others wait
    with pytest.raises(UserError, match="rates cannot be combined"):
        Session.of(words, ["rates", "method.gcl.tau=0.1,0.2"])
    rates = Session.of(words, [searches.RATES]).searches[0]
    assert [*rates.grid] == ["train.lr", "train.lr_text"]
    assert split(rates.command()[1:-1])[1] == rates.grid
    heads = Session.of([*tokens, "method=gcl,icarl", "memory.budget=12"], ["lr_head=1e-3,1e-2"])
    assert [search.cells[0].config.method.name for search in heads.searches] == ["icarl"]  # gcl has no head


def test_every_method_and_memory_size_has_as_many_trials(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    free = [word for word in tokens if not word.startswith("train.epochs")]
    words = [*free, "method=gdro,ewc,cassle,slda,zero_shot", "memory.budget=0,12", "seed=0,1"]
    found = Session.of([*words, f"out={tmp_path / 's'}"], ["all"], trials=7).searches
    assert {tuple(search.command()[-3:]) for search in found} == {("--trials", "7", "--json")}
    # cassle and slda keep no exemplars: one search for all memory sizes; zero_shot has nothing to tune
    assert [search.cells[0].config.method.name for search in found] == ["gdro"] * 2 + ["ewc"] * 2 + [
        "cassle",
        "slda",
    ]
    assert {"train.lr", "train.lr_text", "train.epochs", "method.margin", "method.tau"} <= found[
        0
    ].grid.keys()
    assert "method.strength" in found[2].grid
    # more trials go on where these end
    assert found[0].path == Session.of([*words, f"out={tmp_path / 's'}"], ["all"], trials=8).searches[0].path
    assert Session.of([*words, f"out={tmp_path / 's'}"], ["all"]).searches[0].most == trials.MOST
    fixed = Session.of([*words, "train.epochs=1", f"out={tmp_path / 's'}"], ["all"]).searches[0]
    assert "train.epochs" not in fixed.grid
    with pytest.raises(UserError, match="all cannot be combined"):
        Session.of(words, ["all", "lr=1e-5,1e-4"])
    assert main(["sweep", *words, "--trials", "3"]) == 2
    assert "--tune" in capsys.readouterr().err


@pytest.mark.slow
def test_searches_score_on_the_share_that_is_given_and_runs_train_on_all(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    words = [*tokens, "method=gcl", "memory.budget=12", f"out={out}", "--tune", "lr=1e-5,1e-4", "--json"]
    assert main(["sweep", *words, "scenario.validation=0.5", "--drop-checkpoints"]) == 0
    assert not [*out.glob("**/checkpoints")]  # of the trials neither
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    config = load_config([f"{cell['run']}/config.toml"])
    assert config.scenario.validation is None
    assert ", 0.5 of their training images," in (config.tuned_on or "")
    # another share is another search, and its trials cost as much as they may
    again = Session.of([*words[:-3], "scenario.validation=0.25"], ["lr=1e-5,1e-4"])
    (search,) = again.searches
    assert "scenario.validation=0.25" in search.command()
    assert not search.finished
    two, one = again.seconds_left(), Session.of(words[:-3]).seconds_left()
    assert two is not None
    assert one is not None
    assert two > one
    same = Session.of([*words[:-3], "scenario.validation=0.5"], ["lr=1e-5,1e-4"])
    assert not same.searches
    with pytest.raises(UserError, match=r"scenario\.validation"):
        Session.of([*words[:-3], "scenario.validation=2"], ["lr=1e-5,1e-4"])


def test_the_frozen_part_is_paid_once_for_runs_that_share_it(tmp_path: Path, tokens: list[str]) -> None:
    words = [*tokens, "method=gcl", "tune=top:1", "cache.views=4", "seed=0,1,2", f"out={tmp_path / 's'}"]
    own, shared = (Session.of([*words, f"cache.shared={word}"]) for word in ("false", "true"))
    found = pace.of_plan(Plan.of(shared.jobs[0].config))
    assert found is not None
    assert found.shared > 0
    apart, together = own.seconds_left(), shared.seconds_left()
    assert apart == pytest.approx(3 * found.seconds)
    assert together == pytest.approx(3 * found.seconds - 2 * found.shared)


def test_the_time_of_a_dry_run_is_that_of_its_own_settings(tmp_path: Path, tokens: list[str]) -> None:
    def left(*more: str) -> float:
        found = Session.of([*tokens, "method=gcl", f"out={tmp_path / 's'}", *more]).seconds_left()
        assert found is not None
        return found

    assert left("references=none") < left("references=all")
    assert left("scenario.validation=0.5") < left()


def chosen(session: Session) -> Path:
    """Carry out the one search of a session, on scores that follow from the settings; return its file."""
    (search,) = session.tune

    def score(run: Run) -> dict[str, Any]:
        return {"last": int(config_hash(run.config), 16) / 16**16}

    command = [word for word in search.command()[1:] if not word.startswith("out=")]
    words = [word for word in command if "=" in word or word.endswith(".toml")]
    tune(words, search.path, score, print, search.most)
    return search.path / "tuned.toml"


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        (["all"], 3),
        (["all"], 40),
        (["rates"], None),
        (["rates"], 5),
        (["lr=1e-4,3e-5", "method.carry_over=true,false"], None),
        (["lr=1e-4,3e-5", "method.gcl.tau=0.02,0.05"], 3),
    ],
)
def test_a_search_is_finished_only_with_what_it_would_try_and_choose(
    tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch, asked: list[str], most: int | None
) -> None:
    words = [*tokens, "method=gcl", "memory.budget=12", f"out={tmp_path / 's'}"]

    def finished(*more: str, trials: int | None = most) -> bool:
        (search,) = Session.of([*words, *more], asked, look=False, trials=trials).tune
        return search.finished

    session = Session.of(words, asked, trials=most)
    file = chosen(session)
    session.refresh()
    assert not session.searches
    (job,) = session.jobs
    assert job.config.tuned_on is not None
    assert finished()
    file.parent.rename(file.parent.with_name("of-before"))
    assert finished(), "its name does not count"
    file = file.parent.with_name("of-before") / "tuned.toml"
    assert finished("scenario.validation=0.2"), "the default"
    assert not finished("scenario.validation=0.3")
    assert not finished("seed=1")
    assert most is None or not finished(trials=most + 1)

    text = file.read_text()
    for damaged in (
        text[: len(text) // 2],
        re.sub(r"(?m)^lr = .*", "lr = 1.5e-4", text),
        re.sub(r"(?m)^lr = .*\n", "", text),
        re.sub(r"(?m)^tuned_on = .*", "", text),
        re.sub(r"(?m)^weight_decay = .*", "weight_decay = 0.5", text),
        "",
    ):
        file.write_text(damaged)
        assert not finished(), damaged
    file.write_text(text)
    assert finished()
    if "all" in asked:
        monkeypatch.setattr(trials, "FACTORS", (0.5, 1.0, 2.0))
        assert not finished()
        monkeypatch.undo()
        grids = method_class("gcl").Config
        monkeypatch.setattr(grids, "search", {**grids.search, "margin": (0.1, 0.3)})
        assert not finished()


def test_the_share_of_a_config_file_is_that_of_its_searches_alone(tmp_path: Path, tokens: list[str]) -> None:
    base = tmp_path / "base.toml"
    words = [str(base), *tokens, "method=gcl,ncm", "memory.budget=12", f"out={tmp_path / 's'}"]
    base.write_text("")
    plain = Session.of([*words, "scenario.validation=0.5"], ["lr=1e-5,1e-4"])
    base.write_text("[scenario]\nvalidation = 0.5\n")
    session = Session.of(words, ["lr=1e-5,1e-4"])
    assert [cell.config.scenario.validation for cell in session.asked.cells] == [None, None]
    assert [job.key for job in session.jobs] == [job.key for job in plain.jobs]  # ncm has no search
    assert [search.key for search in session.tune] == [search.key for search in plain.tune]
    chosen(session)
    session.refresh()
    assert not session.searches
    assert {job.config.scenario.validation for job in session.jobs} == {None}
    assert not Session.of(words, ["lr=1e-5,1e-4"]).searches
    for word, share in (("0.25", 0.25), ("none", 0.2)):
        (search,) = Session.of([*words, f"scenario.validation={word}"], ["lr=1e-5,1e-4"]).tune
        assert search.share == share
    assert Session.of(words).jobs[0].config.scenario.validation == 0.5  # asked for without a search


def test_runs_that_wait_for_a_search_are_shown_and_none_waits_for_one_that_failed(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    words = [*tokens, "method=gcl,ncm", "memory.budget=12", "seed=0,1", f"out={out}"]
    tuned = ["--tune", "lr=1e-5,1e-4"]
    assert main(["sweep", *words, *tuned, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"4 of 4 runs are missing in {out}" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert [row[:2] for row in rows if row[0].startswith("gcl")] == [
        ["gcl_s0", "waiting"],
        ["gcl_s1", "waiting"],
    ]
    assert main(["sweep", *words, *tuned, "--print"]) == 0
    search, *runs = capsys.readouterr().out.splitlines()
    assert search.startswith("everclip tune")
    assert [shlex.split(line)[-1] for line in runs] == [f"out={out}/ncm_s0", f"out={out}/ncm_s1"]
    session = Session.of(words, ["lr=1e-5,1e-4"])
    run(out / "gcl_s0", *tokens, "method=gcl", "memory.budget=12", "seed=0")  # not tuned
    job = session.held[0][0]
    assert [Path(cell["run"]).name for cell in session.cells()][2:] == [f"gcl_s0_{job.key[:6]}", "gcl_s1"]
    shutil.rmtree(out / "gcl_s0")
    session.folder.failures[session.searches[0].key] = "it is wrong"
    with session.folder:
        session.write()
        (session.folder.log(f"tune-{session.searches[0].name}")).write_text("error: it is wrong\n")
    assert main(["sweep", *words, *tuned, "--print"]) == 0
    assert capsys.readouterr().out.splitlines() == runs
    assert main(["sweep", *words, *tuned, "--dry-run", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert sorted((Path(cell["run"]).name, cell["state"], cell["error"]) for cell in cells) == [
        *((f"gcl_s{seed}", "failed", "it is wrong") for seed in (0, 1)),
        *((f"ncm_s{seed}", "waiting", None) for seed in (0, 1)),
    ]
    waiting = {name.partition(" ")[0]: state.words for name, state in not_begun([out], [])}
    assert waiting == {
        **dict.fromkeys(("ncm_s0", "ncm_s1"), "waiting"),
        **dict.fromkeys(("gcl_s0", "gcl_s1"), "its search failed: it is wrong"),
    }


def test_the_device_of_a_search_is_checked_before_anything_runs(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tokens if not word.startswith("device")]
    asked = [*words, "method=gcl", "device=cuda:7", f"out={tmp_path / 's'}", "--tune", "lr=1e-5,1e-4"]
    assert main(["sweep", *asked]) == 2
    assert "cuda:7" in capsys.readouterr().err
    assert not (tmp_path / "s" / "sweep.json").exists()


@pytest.mark.parametrize("option", ["--json", "--jobs=2", "--threads=2"])
def test_options_of_runs_on_this_machine_are_refused_where_none_starts(
    tokens: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *tokens, "method=gcl", "--print", option]) == 2
    assert f"{option.partition('=')[0]} with --print changes nothing" in capsys.readouterr().err


def test_a_search_that_has_begun_goes_on_in_its_folder(tmp_path: Path, tokens: list[str]) -> None:
    words = [*tokens, "method=gcl", "memory.budget=4,12", f"out={tmp_path / 's'}"]
    small, large = Session.of(words, ["all"], trials=4).tune
    for search, other in ((small, "a"), (large, "b")):
        place = tmp_path / "s" / "tune" / other / "of-before"
        run(place, *search.cells[0].words, "train.lr=1e-4", f"scenario.validation={search.share}")
    again = Session.of(words, ["all"], trials=8)
    assert [search.path.name for search in again.tune] == ["a", "b"]
    assert not any(search.finished for search in again.tune)
    assert [search.left for search in again.tune] == [7, 7]
    few = Session.of(words, ["all"], trials=1)
    assert [search.left for search in few.tune] == [0, 0]
    left, every = (found.seconds_left() for found in (few, Session.of(words, ["all"], trials=100)))
    assert left is not None
    assert every is not None
    assert left < every
    other = Session.of([*words, "scenario.validation=0.4"], ["all"], trials=8)
    assert not {search.path.name for search in other.tune} & {"a", "b"}


def test_a_search_within_trials_is_found_again_and_used(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "s", tmp_path / "base.toml"
    base.write_text("[train]\nlr = 1e-4\n")
    words = [
        "sweep",
        str(base),
        *tokens,
        "method=gcl",
        "memory.budget=12",
        f"out={out}",
        "--tune",
        "all",
        "--trials",
        "3",
    ]
    assert main([*words, "--print"]) == 0
    (command,) = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert main(command[1:]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "3 of 3 trials" in found["tuned_on"]
    (place,) = [Path(word.removeprefix("out=")) for word in command if word.startswith("out=")]
    place.rename(place.parent / "of-before")
    assert main([*words, "--print"]) == 0
    (command,) = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert command[:2] == ["everclip", "train"]
    assert f"train.lr={float(found['values']['train.lr'])!r}" in command
    assert main([*words[:-1], "2", "--print"]) == 0
    assert capsys.readouterr().out.startswith("everclip tune")
    base.write_text("[train]\nlr = 1e-2\n")  # the search would start elsewhere
    assert main([*words, "--print"]) == 0
    assert capsys.readouterr().out.startswith("everclip tune")


def test_runs_of_an_earlier_search_are_named(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They stay, and comparing the whole folder would show them."""
    words = ["sweep", *tokens, "method=ncm", "smoke=true", f"out={tmp_path / 's'}"]
    assert main(words) == 0
    assert "earlier search" not in capsys.readouterr().out
    (known,) = (tmp_path / "s").glob("*/config.toml")
    for name, text in (("before", 'tuned_on = "emoji"\n'), ("other", "seed = 7\n")):
        shutil.copytree(known.parent, tmp_path / "s" / name)
        kept = [line for line in known.read_text().splitlines() if name == "before" or line != "seed = 0"]
        (tmp_path / "s" / name / "config.toml").write_text("\n".join([kept[0], text, *kept[1:]]))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "1 run of an earlier search is in this folder, too, and would be in that table: before\n" in told


def test_slurm_without_submitit(
    tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)  # as where it is not installed
    assert main(["sweep", *tokens, "method=ncm", f"out={tmp_path / 's'}", "--slurm"]) == 2
    assert 'pip install "everclip[slurm]", or use --print' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its child
def test_slurm(tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    from everclip.sweep.slurm import Command, submit

    if shutil.which("sbatch") is None:
        assert main(["sweep", *tokens, "method=ncm", f"out={tmp_path / 's'}", "--slurm"]) == 2
        assert "--slurm" in capsys.readouterr().err
    session = Session.of([*tokens, "method=ncm", f"out={tmp_path / 's'}"])
    commands = [session.folder.command(job) for job in session.jobs]
    settings = ["timeout_min=5", "slurm_max_num_timeout=9"]
    numbers = submit(commands, tmp_path / "jobs", settings, cluster="local")
    assert len(numbers) == 1
    deadline = time.monotonic() + 120
    while not session.complete:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert Command(["methods"]).checkpoint() is not None
    with pytest.raises(UserError, match="--slurm-set"):
        submit(commands, tmp_path / "jobs", ["timeout_mn=5"], cluster="local")


_JOB = """
import contextlib, signal, sys
from everclip.sweep.slurm import Command

command = Command(sys.argv[1:])

def asked(number, frame):  # as submitit does
    with contextlib.suppress(ImportError):
        command.checkpoint()
    sys.exit(-1)

signal.signal(signal.SIGUSR2, asked)
command()
"""


@pytest.mark.slow
def test_a_job_that_is_out_of_time_saves_before_it_ends(tmp_path: Path, tokens: list[str]) -> None:
    out = tmp_path / "x"
    tokens = [word for word in tokens if word != "train.epochs=1"]
    words = ["train", *tokens, "method=gcl", "train.steps=2000", f"out={out}"]
    process = subprocess.Popen([sys.executable, "-c", _JOB, *words], stderr=subprocess.PIPE, text=True)
    wait_for(out / "metrics.jsonl", '"event": "step"')
    process.send_signal(signal.SIGUSR2)
    _, said = process.communicate(timeout=GRACE)
    assert process.returncode == 255
    assert f"stopped by SIGTERM: everclip resume {out} continues from its last checkpoint" in said


def test_what_slurm_refuses_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    from everclip.sweep.slurm import submit

    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho sbatch: error: invalid partition: gpu >&2\necho y >&2; exit 1"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(
        UserError, match=r"sbatch: error: invalid partition: gpu y: change it with --slurm-set$"
    ):
        submit([["methods"], ["models"]], tmp_path / "jobs", ["timeout_min=5"])
    with pytest.raises(UserError, match='slurm_max_num_timeout is "many": use a whole number'):
        submit([["methods"]], tmp_path / "jobs", ["slurm_max_num_timeout=many"])


def test_a_run_that_is_killed_when_it_has_its_results_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = Child(Work("gcl", ["methods"], tmp_path, tmp_path / "log"), {})
    child.process.wait()
    assert child.ended()
    for done, line in ((True, "[1/1] gcl: last"), (False, "[1/1] gcl: killed")):
        view = View(
            lambda: 1,
            0,
            {},
            lambda work: "",
            lambda work, error, done=done: (done, "last" if done else "killed"),
        )
        view.started(child)
        view.ended(child, "ended by SIGKILL")
        assert line in capsys.readouterr().err


def test_checkpoints_of_finished_runs_are_dropped(
    tmp_path: Path, tokens: list[str], photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    for seed in (0, 1):
        run(out / f"ncm_s{seed}", *tokens, "method=ncm", "memory.budget=0", f"seed={seed}")
    (out / "ncm_s1" / ".checkpoints.dropped").mkdir()  # of a process that was killed
    words = ["sweep", *tokens, "method=ncm", "memory.budget=0", "seed=0..1", f"out={out}"]
    assert main(words) == 0
    table = capsys.readouterr().out
    kept = (out / "ncm_s0" / "results.json").read_bytes()
    assert main([*words, "--drop-checkpoints"]) == 0
    shown, said = capsys.readouterr()
    assert shown == table
    assert " MB of checkpoints removed: only compare and report can read these runs now" in said
    assert not [*out.glob("*/*checkpoints*")]
    assert (out / "ncm_s0" / "results.json").read_bytes() == kept
    assert main([*words, "--drop-checkpoints"]) == 0
    assert "removed" not in capsys.readouterr().err
    assert main(["resume", str(out / "ncm_s0")]) == 0
    capsys.readouterr()
    pictures = photos.removeprefix("imagefolder:")
    for command, *more in (["predict", pictures], ["evaluate", "--data", photos], ["export", "-o", "x"]):
        assert main([command, str(out / "ncm_s0"), *more]) == 2
        said = capsys.readouterr().err
        assert f"the checkpoints of {out}/ncm_s0 were removed" in said
        assert said.count("\n") == 1
    assert (
        main([*words[:-2], "seed=0", "--from", str(out), "--from-stage", "1", f"out={tmp_path / 'f'}"]) == 2
    )
    assert f"the checkpoints of {out}/ncm_s0 are gone: train it again" in capsys.readouterr().err


def test_what_is_in_use_or_leads_elsewhere_keeps_its_checkpoints(tmp_path: Path) -> None:
    for name in ("unfinished", "busy", "linked"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "x").write_text("x")
        if name != "unfinished":
            (tmp_path / name / "results.json").touch()
    (tmp_path / "linked" / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "linked" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with FileLock(tmp_path / "busy" / ".lock"):
        assert [drop_checkpoints(tmp_path / name) for name in ("unfinished", "busy", "linked")] == [0, 0, 0]
    assert len([*tmp_path.glob("*/checkpoints/x")]) == 3
    assert drop_checkpoints(tmp_path / "busy") == 1
    assert not (tmp_path / "busy" / "checkpoints").exists()
