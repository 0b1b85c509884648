"""How the processes of a run end: killed, hung, asked to stop, wrong; and how torchrun goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore, TCPStore

from everclip.distributed import collectives, launch
from everclip.system.signals import Stopped
from tests.distributed.processes import environment, finish, start
from tests.distributed.test_exact import same
from tests.running import run, timeless

LONG = [
    "scenario.tasks=2",
    "train.epochs=20",
    "train.batch_size=8",
    "memory.budget=12",
    "device=cpu",
    "references=all",
]
OFTEN = "checkpoint.every=steps:5"


def words(toy: str, photos: str, *more: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", "method=gdro", *LONG, *more]


def command(*tokens: str) -> list[str]:
    return ["-m", "everclip", "train", *tokens]


def wait_for(path: Path, steps: int, seconds: float = 100) -> None:
    """Until a run has made so many steps."""
    end = time.monotonic() + seconds
    while not path.exists() or path.read_text(encoding="utf-8").count('"step"') < steps:
        assert time.monotonic() < end, "the run does not begin"
        time.sleep(0.05)


def errors(texts: list[str]) -> list[str]:
    """Lines that say why a run has ended."""
    return [
        line
        for text in texts
        for line in text.splitlines()
        if line.startswith(("error", "stopped", "Traceback"))
    ]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_one_line(tmp_path: Path, toy: str, photos: str) -> None:
    out = tmp_path / "run"
    processes = start(3, command(*words(toy, photos, OFTEN, f"out={out}")))
    wait_for(out / "metrics.jsonl", 8)
    processes[1].kill()
    begun = time.monotonic()
    ended = finish(processes, 60)
    assert time.monotonic() - begun < 60
    assert [code for code, _, _ in ended] == [1, -signal.SIGKILL, 1]
    told = [text for _, _, text in ended]
    assert len(errors(told)) == 1, told
    assert "another process of this run has ended" in errors(told)[0]


TORN_DOWN = """
import atexit, sys
import torch.distributed as dist
from everclip.__main__ import main
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(print, "Python was torn down", file=sys.stderr)
sys.argv = ["everclip", "train", "data=nothing"]
sys.exit(main())
"""


def test_python_is_not_torn_down_under_torchs_threads() -> None:
    """A thread that still waits for a process that is gone would abort this one, now and then."""
    command = [sys.executable, "-c", TORN_DOWN]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2, ended.stderr
    assert len(errors([ended.stderr])) == 1
    assert "torn down" not in ended.stderr


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = [token for token in words(toy, photos) if token != "train.batch_size=8"]
    ended = finish(start(2, command(*tokens, "train.batch_size=1", f"out={tmp_path / 'run'}")))
    assert [code for code, _, _ in ended] == [2, 2], ended
    (line,) = errors([text for _, _, text in ended])
    assert "train.batch_size=1 is the total over 2 processes: use at least 2" in line


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = words(toy, photos)
    out = tmp_path / "two"
    processes = start(2, command(*tokens, f"out={out}"))
    wait_for(out / "metrics.jsonl", 5)
    processes[1].send_signal(signal.SIGTERM)  # the other one learns of it
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [75, 75]
    assert len(errors([text for _, _, text in ended])) == 1
    assert [*(out / "checkpoints").glob("task-*-step-*")], "it was saved within the task"
    again = finish(start(2, command(*tokens, f"out={out}")))
    assert [code for code, _, _ in again] == [0, 0], again
    results = json.loads((out / "results.json").read_text())
    same(run(tmp_path / "one", *tokens), results, tmp_path / "one", out, keys=10)


def test_only_the_first_process_that_has_a_reason_reports_it() -> None:
    store = HashStore()
    for ends in (Stopped, SystemExit):
        with pytest.raises(ends), launch._alone(store):
            raise Stopped(signal.SIGTERM)


def test_a_process_whose_store_is_gone_with_its_machine_says_why_it_ends() -> None:
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("localhost", server.port, timeout=timedelta(seconds=1))
    del server
    with pytest.raises(Stopped), launch._alone(client):
        raise Stopped(signal.SIGTERM)


@pytest.mark.slow
def test_a_process_that_waits_for_the_first_is_silent_once_that_has_spoken() -> None:
    """The others of a step learn of a failure only when the first process is gone."""
    first, other = finish(start(2, ["-c", WAITS]), 60)
    assert (first[0], other[0]) == (1, 1), (first, other)
    assert errors([first[2], other[2]]) == ["error: the disk is full"]


WAITS = """
import os, sys, torch
import torch.distributed as dist
from everclip.distributed import collectives, launch
from everclip.errors import RunError
try:
    with launch.joined("cpu"):
        if collectives.rank() == 0:
            raise RunError("the disk is full")
        with collectives.answered():
            dist.broadcast(torch.zeros(1), src=0)
except RunError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)
except SystemExit as error:
    os._exit(error.code)
"""


@contextmanager
def torchrun(*options: str, tokens: list[str]) -> Iterator[subprocess.Popen[str]]:
    """``torchrun`` with two processes, and all that it has started gone when it is closed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    process = subprocess.Popen(
        [*launcher, "--rdzv-endpoint=localhost:0", *options, *command(*tokens)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.kill()


def workers(launcher: int) -> list[int]:
    """The processes that a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(number) for number in children.read_text().split()] if children.exists() else []


@pytest.mark.slow
def test_torchrun_goes_on_after_each_process_was_killed(tmp_path: Path, toy: str, photos: str) -> None:
    tokens, out = words(toy, photos, OFTEN), tmp_path / "two"
    with torchrun("--max-restarts=2", tokens=[*tokens, f"out={out}"]) as launcher:
        for victim, steps in enumerate((12, 50)):
            wait_for(out / "metrics.jsonl", steps)
            os.kill(workers(launcher.pid)[victim], signal.SIGKILL)
            time.sleep(1)
        _, text = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, text
    assert "continued in task 1 after step" in text
    results = json.loads((out / "results.json").read_text())
    alone = run(tmp_path / "one", *tokens)
    assert timeless(alone)["matrix"] == results["matrix"]
    same(alone, results, tmp_path / "one", out, keys=10)


SLOW = """
import time
from everclip.trackers import Tracker

class Slow(Tracker):
    def log(self, event, fields):
        pass

    def close(self):
        time.sleep(5)
        (self.path / "closed").touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_torchrun_lets_the_first_process_close_its_run(
    tmp_path: Path, toy: str, photos: str, number: signal.Signals
) -> None:
    """It sends SIGTERM to it as soon as the other one has ended, stopped or killed."""
    out, tracker = tmp_path / "run", tmp_path / "slow.py"
    tracker.write_text(SLOW)
    longer = [word.replace("epochs=20", "epochs=2000") for word in words(toy, photos, f"out={out}")]
    with torchrun(tokens=[*longer, f'trackers=["{tracker}"]']) as launcher:
        wait_for(out / "metrics.jsonl", 8)
        os.kill(workers(launcher.pid)[1], number)
        _, text = launcher.communicate(timeout=100)
    assert (out / "closed").exists(), text
    assert not (out / ".holder").exists()
    said = [line for line in errors([text]) if not line.startswith("Traceback")]  # which is torchrun's own
    assert len(said) == 1, text


@pytest.mark.slow
def test_torchrun_asks_for_a_directory(toy: str, photos: str) -> None:
    with torchrun("--max-restarts=1", tokens=words(toy, photos)) as launcher:
        _, text = launcher.communicate(timeout=100)
    assert launcher.returncode != 0
    assert "give out=PATH" in text


IMPATIENT = """
import os, signal, sys
from datetime import timedelta
from everclip.__main__ import main
from everclip.data.loader import Loader
from everclip.distributed import collectives

order = Loader.order

def stopped(self, images, phase, key):
    if key[2] == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    return order(self, images, phase, key)

Loader.order = stopped
collectives.TIMEOUT = timedelta(seconds=9)
sys.exit(main())
"""
"""A process that hangs where an epoch begins, and waits for others within a step for 9 s."""


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_within_a_minute(tmp_path: Path, toy: str, photos: str) -> None:
    out, spared = tmp_path / "run", collectives.TIMEOUT.total_seconds() - 9
    processes = start(2, ["-c", IMPATIENT, *command(*words(toy, photos, f"out={out}"))[2:]])
    try:
        wait_for(out / "metrics.jsonl", 6)  # two steps in an epoch
        begun = time.monotonic()
        _, told = processes[0].communicate(timeout=100)
        assert processes[0].returncode == 1, told
        assert spared + time.monotonic() - begun < 60
    finally:
        for process in processes:
            process.kill()
        ended = finish(processes)
    (line,) = errors([text for _, _, text in ended])
    assert "does not answer" in line
