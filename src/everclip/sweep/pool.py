"""Run ``everclip`` commands in parallel, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from everclip.errors import UserError
from everclip.runs.find import last_error
from everclip.sweep.folder import busy
from everclip.sweep.slots import Environment
from everclip.system.outputs import open_own
from everclip.system.reading import diverted

GRACE = 60.0
"""Seconds that a run has to save its progress."""
EVERY = 0.2
"""Seconds between polls of the processes."""
STOPPED = (75, 130)
"""Exit codes of a command that was asked to stop, and that the next sweep continues."""


@dataclass(frozen=True, eq=False)
class Work:
    """One command: its name and words, its working directory, and the file for its output."""

    name: str
    words: Sequence[str]
    path: Path
    log: Path


def _appended(log: Path) -> BinaryIO:
    """Open a log to append to. Raises UserError where it leads elsewhere, such as a link."""
    try:
        if wrong := diverted(log.parent, [log.name]):
            raise UserError(f"{log.parent} cannot be used, as {wrong}: remove it, or give another out")
        return open_own(log, "ab")  # refuses a link that has appeared meanwhile
    except OSError as error:
        raise UserError(
            f"{log} cannot be written ({error.strerror}): remove it, or give another out"
        ) from error


class Child:
    """A running command."""

    def __init__(self, work: Work, slot: Environment) -> None:
        self.work = work
        self.slot = slot
        self.started = time.monotonic()
        with _appended(work.log) as output:
            self._from = output.tell()  # what is before it comes from earlier attempts
            # Its own session: Ctrl-C goes to the sweep alone, which then asks its children to stop.
            # -P: otherwise modules of the current folder would come before the installed ones.
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
        """Return whether it has ended, and close its pipe then."""
        over = self.process.poll() is not None
        if over and self.process.stdin is not None:
            self.process.stdin.close()
        return over

    def error(self) -> str | None:
        """Return why an ended command failed, in one line; None where it did not, or was asked to stop."""
        code = self.process.returncode
        if code in (0, *STOPPED, -signal.SIGTERM):
            return None
        if code < 0:
            why = ", perhaps out of memory: try a smaller --jobs" if code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-code).name}{why}"
        return last_error(self.work.log, self._from) or f"exit code {code}: see {self.work.log}"


class Watcher:
    """Follow ``run`` without showing anything."""

    def started(self, child: Child) -> None:
        """Take note that a command has started."""

    def ended(self, child: Child, error: str | None) -> None:
        """Take note that a command has ended; ``error`` says why it failed."""

    def stopping(self, running: Sequence[Child]) -> None:
        """Take note that the running commands are about to be asked to save their progress and end."""

    def look(self, running: Sequence[Child], waiting: Sequence[Work]) -> None:
        """Take note of the running and waiting commands, several times per second."""


def run(waiting: list[Work], slots: Sequence[Environment], watcher: Watcher) -> None:
    """Run commands until all have ended, one at a time per slot. Whatever ends this, no child is left.

    A command waits while another process works in its directory.

    Args:
        waiting: is emptied; the watcher may add to it when a command has ended.
    """
    free, running = list(slots), []
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
    """Ask commands to save their progress and end; kill the others after ``GRACE`` seconds."""
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
