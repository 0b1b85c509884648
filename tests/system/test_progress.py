"""What is said of the time that is left."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import pytest

from everclip.sweep.view import View
from everclip.system import progress
from everclip.system.progress import Progress, duration


class Clock:
    """A clock that stands still between ticks."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def last(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    return lines[-1] if lines else ""


def test_a_piece_says_what_is_left_of_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    shown.start("reading", 100)
    clock.now += 20
    shown.step("loss 1", count=10)
    assert last(capsys) == "reading  10/100  loss 1  about 3 min left"
    clock.now += 5
    shown.step(count=10)
    assert last(capsys) == "", "one line in ten seconds"
    clock.now += 15
    shown.step(count=30)
    assert last(capsys) == "reading  50/100    about 40 s left"


def test_what_was_done_before_took_no_time_here(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    shown.start("train", 100, 50)
    clock.now += 20
    shown.step(count=10)
    assert last(capsys) == "train  60/100    about 80 s left"


def test_sections_that_are_foreseen_say_what_is_left_in_all(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks of 8 units to learn, in two phases, and 2 to test: a unit takes ten seconds."""
    shown = Progress()
    shown.expect([8, 2, 8, 2])
    shown.start("task 1: represent", 4, part=0.5)
    clock.now += 20
    shown.step(count=2)
    assert last(capsys) == "task 1: represent  2/4    about 3 min left in all"  # 18 units
    clock.now += 20
    shown.step(count=2)
    shown.start("task 1: probe", 10, part=0.5)
    clock.now += 20
    step = shown.aside("keeping", 5)
    step(3)
    assert "in all" in last(capsys)
    step(2)
    shown.step(count=5)
    clock.now += 20
    shown.step(count=5)
    assert last(capsys) == "task 1: probe  10/10    about 2 min left in all"  # 12 units
    shown.section()
    shown.start("task 1: test", 10)
    clock.now += 20
    shown.count(10)
    assert last(capsys) == "task 1: test  10/10    about 2 min left in all"
    shown.section()
    shown.start("task 2: represent", 1)
    clock.now += 80
    shown.step()
    assert last(capsys) == "task 2: represent  1/1    about 20 s left in all"


def test_what_comes_before_the_first_section_is_none_of_it(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run tests zero-shot before its first task, which has not begun then."""
    shown = Progress()
    shown.start("zero-shot test", 100)
    shown.count(100)
    shown.expect([10, 10])
    shown.start("task 1: train", 10)
    clock.now += 20
    shown.step(count=1)
    assert last(capsys) == "task 1: train  1/10    about 6 min left in all"  # 19 units of 20 seconds


def test_a_continued_task_is_foreseen_by_what_was_done_since(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of task 1's twenty steps ten were done before: a step takes ten seconds, in that task and after it."""
    shown = Progress()
    shown.expect([20, 2, 20, 2])
    shown.start("task 1: represent", 10, 10, part=0.5)
    shown.start("task 1: probe", 10, part=0.5)
    clock.now += 50
    shown.step(count=5)
    assert last(capsys) == "task 1: probe  5/10    about 5 min left in all"  # 29 units
    clock.now += 50
    shown.step(count=5)
    shown.section()
    shown.start("task 1: test", 10)
    clock.now += 20
    shown.count(10)
    assert last(capsys) == "task 1: test  10/10    about 4 min left in all"  # 22 units


def test_nothing_is_foretold_of_a_moment(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    clock.now += 60
    shown.start("reading", 100)
    clock.now += 1
    shown.step(count=10)
    assert last(capsys) == "reading  10/100"


def test_what_is_said_is_logged_and_the_steps_are_not(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "everclip"):
        shown = Progress(quiet=True)
        shown.say("task 1: 50 %")
        shown.start("reading", 10)
        clock.now += 60
        shown.step()
    assert caplog.messages == ["task 1: 50 %"]


def test_durations() -> None:
    assert [duration(x) for x in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]


def shown(clock: Clock) -> None:
    with Progress() as bar:
        bar.start("reading", 100)
        clock.now += 20
        bar.step(count=10)
    with View(lambda: 3, 0, {}, lambda work: "", lambda work, error: (True, "")) as view:
        view.look([], [])
    sys.stderr.flush()


def on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch, term: str) -> str:
    """What a terminal of this kind is sent."""
    monkeypatch.setenv("TERM", term)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = os.openpty()
    with open(theirs, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        shown(clock)
    told = b""
    with contextlib.suppress(
        OSError
    ):  # EIO, where all was read: a read returns what the kernel has passed on so far
        while more := os.read(ours, 1 << 16):
            told += more
    os.close(ours)
    return told.decode()


def test_a_terminal_has_a_bar_and_a_table(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    told = on_a_terminal(clock, monkeypatch, "xterm")
    assert "\x1b[" in told
    assert "running" in told


def test_a_terminal_that_cannot_move_its_cursor_has_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell in an editor is. rich itself would show nothing there."""
    assert on_a_terminal(clock, monkeypatch, "dumb") == "reading  10/100    about 3 min left\r\n"


def test_a_pipe_has_lines_where_colours_are_forced(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in continuous integration."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown(clock)
    assert capsys.readouterr().err == "reading  10/100    about 3 min left\n"
