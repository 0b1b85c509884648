"""Show how a run goes on: a live bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from everclip.system.text import printable

EVERY = 10.0
"""Seconds between plain lines."""


def _notebook(console: Console) -> bool:
    """Return whether a notebook shows a bar, for which rich needs ipywidgets."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


class Progress:
    """Show steps of one piece of work at a time, on stderr. A context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self.console = Console(stderr=True, soft_wrap=True)
        self._bar = (
            Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            if (self.console.is_terminal or _notebook(self.console)) and not quiet
            else None
        )
        self._task = None
        self._name, self._total, self._done, self._said = "", 0, 0, time.monotonic()

    @property
    def live(self) -> bool:
        """Whether a bar is shown, which has the time that is left."""
        return self._bar is not None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Start a new piece of work of ``total`` steps, of which some may be done already."""
        self._name, self._total, self._done = name, total, done
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(escape(name), total=total, completed=done, note="")

    def step(self, note: str = "", count: int = 1) -> None:
        """Count ``count`` steps more as done."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            self.say(f"{self._name}  {self._done}/{self._total}  {note}".rstrip())

    def aside(self, name: str, total: int) -> Callable[[int], None]:
        """Start a piece of work inside the present one, which is shown again once it is done.

        Returns:
            What to call with each number of steps done.
        """
        present = self._name, self._total, self._done
        self.start(name, total)

        def step(count: int) -> None:
            self.step(count=count)
            if self._done >= total and present[1]:
                self.start(*present)

        return step

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        line = printable(line)
        if self._bar is not None:
            self.console.print(line, markup=False, highlight=False)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)
