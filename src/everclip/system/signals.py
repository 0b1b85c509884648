"""Listen for signals that ask a run to stop: SIGTERM and SIGUSR1 (a scheduler), SIGHUP (a closed terminal), Ctrl-C.

If nothing would be lost, the command ends immediately. While it trains, a signal only sets a flag; the next step ends
with a checkpoint, and the command ends with exit code 75, or 130 after Ctrl-C. A second signal does not wait.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
PREEMPTED, INTERRUPTED = 75, 130
ECHO = 0.5
"""Seconds within which a second signal counts as the first: launchers pass on what a terminal sends to all."""


class Stopped(BaseException):
    """A signal ends the command.

    Attributes:
        signal: its number.
        code: the exit code.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)
        self.code = INTERRUPTED if number == signal.SIGINT else PREEMPTED

    @property
    def cause(self) -> str:
        """The cause of the stop, in words."""
        return "interrupted" if self.code == INTERRUPTED else f"stopped by {self.signal.name}"


@contextmanager
def handling(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    """Use these handlers in this block, but leave a signal alone whose handler was not set in Python, which could not
    restore it; outside of the main thread, where Python allows no handlers, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unwinding() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise Stopped in this block where they would kill the process, so that it cleans up."""
    killing = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    with handling(dict.fromkeys(killing, _raise)):
        yield


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def leaving(words: str | Callable[[], str]) -> Iterator[None]:
    """Add ``words`` to an interrupt, or ``Stopped``, of this block: what is left, and what continues it."""

    def left() -> str:
        return words if isinstance(words, str) else words()

    try:
        yield
    except Stopped as error:
        raise Stopped(error.signal, f"{error.cause}: {left()}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {left()}") from None


class Stop:
    """A request to stop the run, or none yet. Nothing asks for it before ``listening``."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._at = 0.0
        self._held = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals while it is open, in the main thread; those that are ignored stay ignored (nohup)."""
        chosen = [number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN]
        with handling(dict.fromkeys(chosen, self._came)):
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this is open, have a signal only set the flag, which ``check`` and the end of the block look at."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    @property
    def requested(self) -> int | None:
        """The signal that has come, if any."""
        return self._signal

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Ask to stop, as a signal would in ``held``."""
        self._signal, self._at = number, time.monotonic()

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self._signal is not None:
            raise Stopped(self._signal)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self.ask(number)
            if not self._held:
                raise Stopped(number)
        elif time.monotonic() - self._at > ECHO:
            raise Stopped(number)
