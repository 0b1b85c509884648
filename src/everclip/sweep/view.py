"""Show the progress of a sweep: a live table on a terminal, else a line when a run starts or ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from everclip.sweep.pool import GRACE, Child, Watcher, Work
from everclip.system.progress import duration, replaces
from everclip.system.reading import parse_json
from everclip.system.text import printable

SEARCH = "search"
"""The kind of searches, whose times say nothing about those of runs."""
REFRESH = 1.0
"""Seconds between reads of the running runs' logs."""


class Follow:
    """Read a run's metrics.jsonl as it grows: tasks planned and finished, and the step."""

    def __init__(self, run: Path) -> None:
        self._file = run / "metrics.jsonl"
        self._at = 0
        self.tasks = self.done = self.step = 0

    def look(self) -> str:
        """Return the run's progress in words."""
        try:
            with self._file.open("rb") as file:
                if file.seek(0, 2) < self._at:  # cut back by a resume
                    self._at = self.tasks = self.done = self.step = 0
                file.seek(self._at)
                text = file.read()
        except OSError:
            return "starting"
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            self._take(line)
        if not self.tasks:
            return "starting"
        if self.done == self.tasks:
            return "finishing"
        return f"task {self.done + 1} of {self.tasks}, step {self.step}"

    def _take(self, line: bytes) -> None:
        try:
            event: dict[str, Any] = parse_json(line)
            kind = event["event"]
            if kind == "start":
                self.tasks = len(event["tasks"])
            elif kind == "stage":
                self.done = event["stage"] + 1
            elif kind == "step":
                self.step = event["global_step"] + 1
        except (ValueError, KeyError, TypeError):
            pass  # a torn line of a killed run


class FollowSearch:
    """Count a search's trials as they begin, and follow the last one."""

    def __init__(self, search: Path) -> None:
        self._search = search
        self._trials: dict[Path, Follow] = {}

    def look(self) -> str:
        """Return the search's progress in words."""
        for file in sorted(self._search.glob("*/config.toml"), key=lambda file: file.stat().st_mtime):
            self._trials.setdefault(file.parent, Follow(file.parent))
        if not self._trials:
            return "starting"
        return f"trial {len(self._trials)}, {[*self._trials.values()][-1].look()}"


class View(Watcher):
    """Show a sweep on stderr. A context manager.

    Args:
        total: returns the number of works known so far, including those already done.
        done: works already done.
        seconds: times of finished runs by kind, to estimate those of others.
        kind: returns the kind of a work: ``SEARCH``, or the run's method.
        ended: is called when a work has ended; returns whether it is done, and its outcome in words.
        failed: runs that failed earlier and are not repeated.
    """

    def __init__(
        self,
        total: Callable[[], int],
        done: int,
        seconds: Mapping[str, list[float]],
        kind: Callable[[Work], str],
        ended: Callable[[Work, str | None], tuple[bool, str]],
        failed: int = 0,
    ) -> None:
        self._total, self._done, self._failed = total, done, failed
        self._seconds = {name: list(values) for name, values in seconds.items()}
        self._kind, self._ended = kind, ended
        self._follow: dict[Work, Follow | FollowSearch] = {}
        self._looked = 0.0
        self._slots = 1
        self._running: list[Child] = []
        self._waiting: list[Work] = []
        self.console = Console(stderr=True, soft_wrap=True)
        live = replaces(self.console)
        self._live = Live(console=self.console, transient=True, auto_refresh=False) if live else None

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        line = printable(line)
        if self._live is not None:
            self.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def started(self, child: Child) -> None:
        """Show that a run has started."""
        follow = FollowSearch if self._kind(child.work) == SEARCH else Follow
        self._follow[child.work] = follow(child.work.path)
        if self._live is None:
            self.say(f"{child.work.name}: starts")

    def ended(self, child: Child, error: str | None) -> None:
        """Show that a run has ended."""
        done, words = self._ended(child.work, error)
        if done:
            self._done += 1
            self._seconds.setdefault(self._kind(child.work), []).append(child.seconds)
        else:
            self._failed += error is not None
        del self._follow[child.work]
        left = self.seconds_left([other for other in self._running if other is not child], self._waiting)
        rest = f", about {duration(left)} left" if left else ""
        self.say(
            f"[{self._done + self._failed}/{self._total()}] {child.work.name}: {words}"
            f" ({duration(child.seconds)}{rest})"
        )

    def stopping(self, running: Sequence[Child]) -> None:
        """Show which runs still save their progress."""
        names = ", ".join(child.work.name for child in running)
        self.say(f"stopping: {names} may take up to {duration(GRACE)} to save their progress")

    def look(self, running: Sequence[Child], waiting: Sequence[Work]) -> None:
        """Show the progress of the runs."""
        self._running, self._waiting = list(running), list(waiting)
        self._slots = max(self._slots, len(running))
        if self._live is None or time.monotonic() - self._looked < REFRESH:
            return
        self._looked = time.monotonic()
        table = Table(box=None, show_header=False, pad_edge=False)
        for child in running:
            table.add_row(escape(child.work.name), self._follow[child.work].look(), duration(child.seconds))
        failed = f", {self._failed} failed" if self._failed else ""
        text = f"{self._done} of {self._total()} done, {len(running)} running, {len(waiting)} waiting{failed}"
        left = self.seconds_left(running, waiting)
        text += "" if left is None else f"; about {duration(left)} left"
        self._live.update(Group(table, text), refresh=True)

    def seconds_left(self, running: Sequence[Child], waiting: Sequence[Work]) -> float | None:
        """Estimate the seconds left from times of works of the same kind, else of all runs; None until one has ended.

        Until a run has ended, runs count as 0, even if searches have ended.
        """
        if not self._seconds:
            return None
        times = {name: fmean(values) for name, values in self._seconds.items()}
        runs = [value for name, values in self._seconds.items() if name != SEARCH for value in values]

        def whole(work: Work) -> float:
            kind = self._kind(work)
            return times.get(kind, fmean(runs) if runs and kind != SEARCH else 0.0)

        left = [max(0.0, whole(child.work) - child.seconds) for child in running]
        later = sum(map(whole, waiting))
        return max([(sum(left) + later) / self._slots, *left])
