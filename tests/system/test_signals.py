"""Signals: at once where nothing would be lost, at the next step where something would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.runs.run import Run
from everclip.system import signals
from everclip.system.signals import Stop, Stopped
from tests.running import configured, logged

SMALL = ["scenario.tasks=2", "train.epochs=500", "train.batch_size=8", "memory.budget=12", "device=cpu"]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs between two bytecodes


@pytest.mark.parametrize("number", signals.ASKING)
def test_at_once_where_nothing_would_be_lost(number: int) -> None:
    stop = Stop()
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stop.listening():
        send(number)
    assert stopped.value.code == (130 if number == signal.SIGINT else 75)
    assert stopped.value.cause == (
        "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    )
    assert signal.getsignal(number) == before


def test_held_until_what_is_under_way_is_done() -> None:
    stop, done = Stop(), []

    def work() -> None:
        with stop.listening(), stop.held():
            assert not stop.requested
            send(signal.SIGTERM)
            assert stop.requested
            done.append("a step")
            send(signal.SIGTERM)  # what a launcher passes on to all is no second one
            done.append("another")
            stop.check()
            done.append("never")

    with pytest.raises(Stopped):
        work()
    assert done == ["a step", "another"]


def test_held_ends_with_what_was_asked() -> None:
    stop, done = Stop(), []

    def work() -> None:
        with stop.listening():
            with stop.held():
                send(signal.SIGUSR1)
                done.append("saved")
            done.append("never")

    with pytest.raises(Stopped) as stopped:
        work()
    assert done == ["saved"]
    assert stopped.value.signal == signal.SIGUSR1


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO", 0.0)
    stop, done = Stop(), []

    def work() -> None:
        with stop.listening(), stop.held():
            send(signal.SIGTERM)
            done.append("first")
            send(signal.SIGINT)
            done.append("second")

    with pytest.raises(Stopped) as stopped:
        work()
    assert done == ["first"]
    assert stopped.value.code == 130


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup does with SIGHUP, and a shell with SIGINT of what it runs in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening():
            send(signal.SIGHUP)
        assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_python_cannot_restore_stays() -> None:
    """Faulthandler's, set before Python looks at handlers, as a program that embeds Python may set others."""
    code = """
import signal
from everclip.system.signals import handling
assert signal.getsignal(signal.SIGSEGV) is None
with handling({signal.SIGSEGV: print, signal.SIGTERM: print}):
    assert signal.getsignal(signal.SIGTERM) is print
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert signal.getsignal(signal.SIGSEGV) is None
"""
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr


def test_another_thread_listens_to_nothing() -> None:
    heard: list[object] = []

    def listen() -> None:
        with Stop().listening():
            heard.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGTERM)]


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", *SMALL]


def started(words: list[str], out: Path) -> subprocess.Popen[str]:
    """A command in a process of its own, once it has made a step more."""
    before = steps(out)
    command = [sys.executable, "-m", "everclip", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while steps(out) <= before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.05)
    return process


def steps(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b'{"event": "step"') if log.exists() else 0


@pytest.mark.slow
def test_train_and_resume_end_with_a_checkpoint(tmp_path: Path, tokens: list[str]) -> None:
    out = tmp_path / "run"
    commands = [["train", *tokens, f"out={out}"], ["resume", str(out)]]
    for words, number, code in zip(commands, (signal.SIGTERM, signal.SIGINT), (75, 130), strict=True):
        process = started(words, out)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == code
        cause = "stopped by SIGTERM" if code == 75 else "interrupted"
        assert stderr.splitlines()[-1] == f"{cause}: everclip resume {out} continues from its last checkpoint"
        assert "Traceback" not in stderr
        (place,) = Run(out, Run.read_config(out)).store.places()[-1:]
        assert place.step == steps(out), "not one step is lost"


def test_a_run_of_a_killed_process_is_free_again(tmp_path: Path, tokens: list[str]) -> None:
    out = tmp_path / "run"
    process = started(["train", *tokens, f"out={out}"], out)
    config = configured(*tokens, f"out={out}")
    refused = main(["resume", str(out)])
    with (
        pytest.raises(ValueError, match=rf"is in use by another run \(process {process.pid} on .+\): wait"),
        Run.open(config),
    ):
        pass
    process.kill()
    process.communicate(timeout=60)
    assert refused == 2
    with Run.open(config) as opened:
        assert not opened.finished
    assert logged(out)
