"""Show progress: a live bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from everclip.system.text import printable

log = logging.getLogger("everclip")

EVERY = 10.0
"""Seconds between plain lines."""
SURE, LEAST = 3.0, 0.01
"""Seconds, and fraction of the work, after which the remaining time is estimated."""


def duration(seconds: float) -> str:
    """Return ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def replaces(console: Console) -> bool:
    """Return whether what is shown can be redrawn in place: on a terminal that can move its cursor, whether or not
    colours are forced, and in a notebook with ipywidgets, which rich needs."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


class Progress:
    """Show steps of one piece of work at a time, on stderr. A context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self.console = Console(stderr=True, soft_wrap=True)
        self._bar = None
        if replaces(self.console) and not quiet:
            note, left = TextColumn("{task.fields[note]}"), TextColumn("{task.fields[left]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note, left)
            self._bar = Bar(*columns, console=self.console, transient=True)
        self._task = None
        self._name, self._total, self._done, self._said = "", 0, 0, time.monotonic()
        self._given, self._started = 0, self._said
        self._sections: list[float] = []
        self._over = self._part = self._before = self._resumed = 0.0
        self._begun = self._said

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, sections: Sequence[float]) -> None:
        """Announce long work in several sections, so that the time left for all of it is shown.

        Args:
            sections: the amount of work in each, in any unit, in order; ``section`` ends one.
        """
        self._sections, self._over, self._begun = list(sections), 0.0, time.monotonic()
        self._part = self._before = self._resumed = 0.0  # what came before the first section does not count

    def section(self) -> None:
        """Go on to the next section."""
        if self._sections:
            self._over += self._sections.pop(0) * (1 - self._resumed)
        self._part = self._before = self._resumed = 0.0

    def start(self, name: str, total: int, done: int = 0, part: float = 1.0) -> None:
        """Start a new piece of work.

        Args:
            total: its steps, of which ``done`` are done already.
            part: its fraction of the present section.
        """
        self._before += self._part
        self._part = part
        self._resumed += part * done / max(1, total)
        self._name, self._total, self._done, self._given = name, total, done, done
        self._started = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(escape(name), total=total, completed=done, note="", left="")

    def count(self, count: int) -> None:
        """Count steps as done, without a note."""
        self.step(count=count)

    def step(self, note: str = "", count: int = 1) -> None:
        """Count ``count`` steps more as done."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=note, left=self._left())
        elif time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            self._show(f"{self._name}  {self._done}/{self._total}  {note}  {self._left()}".rstrip())

    def _left(self) -> str:
        """Say how much time is left: for all sections if they were announced, else for the present piece."""
        done, total, begun = self._done - self._given, self._total - self._given, self._started
        if self._sections and self._total:
            part = min(1.0, self._before + self._part * self._done / self._total) - self._resumed
            done, begun = self._over + self._sections[0] * part, self._begun
            total = self._over + sum(self._sections) - self._sections[0] * self._resumed
        took = time.monotonic() - begun
        if done <= 0 or took < SURE or done < LEAST * total:
            return ""
        left = duration(took * max(0.0, total - done) / done)
        return f"about {left} left in all" if self._sections else f"about {left} left"

    def aside(self, name: str, total: int) -> Callable[[int], None]:
        """Start a piece of work inside the present one, which is shown again once it is done.

        Returns:
            a function to call with each number of steps done.
        """
        present = self._name, self._total, self._done
        inside = self._before, self._part, self._resumed, self._given, self._started
        self.start(name, total, part=0.0)
        self._before = inside[0] + inside[1] * present[2] / max(1, present[1])

        def step(count: int) -> None:
            self.step(count=count)
            if self._done >= total and present[1]:
                self.start(*present)
                self._before, self._part, self._resumed, self._given, self._started = inside

        return step

    def say(self, line: str) -> None:
        """Show a line that stays, above the bar and in the log."""
        log.info("%s", line)
        self._show(line)

    def _show(self, line: str) -> None:
        line = printable(line)
        if self._bar is not None:
            self.console.print(line, markup=False, highlight=False)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)
