"""Run ``everclip`` commands in parallel, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everclip.sweep.folder import busy
from everclip.sweep.slots import Environment

GRACE = 60.0
"""Seconds that a run has to save its progress."""
EVERY = 0.2
"""Seconds between polls of the processes."""
STOPPED = (75, 130)
"""Exit codes of a command that was asked to stop; the next sweep continues it."""


@dataclass(frozen=True, eq=False)
class Work:
    """One command: its name, its words, the directory it works in, and where its output goes."""

    name: str
    words: Sequence[str]
    path: Path
    log: Path


class Child:
    """A running command."""

    def __init__(self, work: Work, slot: Environment) -> None:
        self.work = work
        self.slot = slot
        self.started = time.monotonic()
        with work.log.open("ab") as output:
            # A session of its own: Ctrl-C goes to the sweep alone, which then asks its children to stop.
            # -P: else modules of the current folder, whosever it is, would stand before the installed ones.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "everclip.cli.child", *work.words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | slot,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started

    def ended(self) -> bool:
        """Return whether it is over; what held it to the sweep is closed then."""
        if self.process.poll() is None:
            return False
        if self.process.stdin is not None:
            self.process.stdin.close()
        return True

    def error(self) -> str | None:
        """Return why an ended command failed, in one line; None where it did not, or was asked to stop."""
        code = self.process.returncode
        if code == 0 or code in STOPPED or code == -signal.SIGTERM:
            return None
        if code < 0:
            return f"ended by {signal.Signals(-code).name}" + (
                ", perhaps out of memory: try a smaller --jobs" if code == -signal.SIGKILL else ""
            )
        lines = self.work.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.startswith("error: ")), None)
        return last.removeprefix("error: ") if last else f"exit code {code}: see {self.work.log}"


class Watcher(ABC):
    """A watcher, which is told how it goes."""

    @abstractmethod
    def started(self, child: Child) -> None:
        """Take note that a command begins."""

    @abstractmethod
    def ended(self, child: Child, error: str | None) -> None:
        """Take note that it is over; ``error`` says why it failed."""

    @abstractmethod
    def stopping(self, running: Sequence[Child]) -> None:
        """Take note that those still running are about to be asked to save themselves and end."""

    @abstractmethod
    def look(self, running: Sequence[Child], waiting: Sequence[Work]) -> None:
        """Look at what runs and waits, several times per second."""


def run(works: Sequence[Work], slots: Sequence[Environment], watcher: Watcher) -> None:
    """Run commands until all have ended, each slot one at a time. Whatever ends this, no child is left.

    A command whose directory another process works in waits for its turn to come again.
    """
    waiting, free, running = list(works), list(slots), []
    try:
        while waiting or running:
            for child in [child for child in running if child.ended()]:
                running.remove(child)
                free.append(child.slot)
                watcher.ended(child, child.error())
            while free and (work := next((work for work in waiting if not busy(work.path)), None)):
                waiting.remove(work)
                running.append(Child(work, free.pop(0)))
                watcher.started(running[-1])
            watcher.look(running, waiting)
            time.sleep(EVERY)
    finally:
        if running:
            watcher.stopping(running)
        stop(running)


def stop(children: Sequence[Child]) -> None:
    """Ask commands to save themselves and end; kill what has not after ``GRACE`` seconds."""
    for child in children:
        child.process.terminate()
    end = time.monotonic() + GRACE
    for child in children:
        try:
            child.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.ended()
