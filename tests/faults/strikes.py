"""A process that ends itself, or stops, right before or right after one of the calls that change what is on the disk.

Counted are the calls that make, rename and remove names or bring them to the disk (``os.rename``, ``os.fsync``, ...;
``pathlib``, ``shutil`` and ``tempfile`` call these), and files that are opened to be written anew and are empty then,
as far as they are about one folder. What safetensors and torch write is not.

``python -m tests.faults.strikes WORDS`` is ``python -m everclip.cli.child WORDS`` struck as the environment says.
"""

from __future__ import annotations

import builtins
import functools
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CHILD = "everclip.cli.child"
VARIABLE = "STRIKE_AT_A_CHILD"
"""Says in the environment how a sweep's children are struck; of the words of ``Strike`` as JSON."""

# name -> how many of its arguments are paths, or descriptors of files
CALLS = {
    "rename": 2,
    "replace": 2,
    "link": 2,
    "symlink": 2,
    "unlink": 1,
    "remove": 1,
    "rmdir": 1,
    "mkdir": 1,
    "fsync": 1,
    "fdatasync": 1,
    "truncate": 1,
    "ftruncate": 1,
    "sync": 0,
}


class Strike(NamedTuple):
    """At which call a process is struck, and how.

    Args:
        folder: calls count that are about it, or about something in it.
        at: the call's number, from 1; 0: none, the calls are only counted.
        after: strikes when the call is done, not before it.
        what: "kill" (SIGKILL), or "stop" (SIGSTOP, until someone sends SIGCONT).
        children: of a sweep are struck, each at its own call of that number, and not the process itself.
        log: the file that the calls are written to, a JSON list, when the process ends by itself.
    """

    folder: str
    at: int = 0
    after: bool = False
    what: str = "kill"
    children: bool = False
    log: str | None = None


class Striker:
    """Counts calls from ``install`` on, and strikes.

    Attributes:
        calls: what each was, in words.
    """

    def __init__(self, strike: Strike) -> None:
        self.strike, self.calls = strike, list[str]()
        self._lock = threading.Lock()
        self._nested = threading.local()  # what a counted call calls is part of it, except in rmtree

    def install(self) -> None:
        """Put the counters in the place of the calls."""
        for name, paths in CALLS.items():
            setattr(os, name, self._counted(name, getattr(os, name), paths))
        opens = self._opening(builtins.open, self._writes)
        builtins.open = io.open = opens
        os.open = self._opening(os.open, self._makes)
        shutil.rmtree = self._counted("rmtree", shutil.rmtree, 1, inner=True)
        durable = sys.modules.get("everclip.system.atomic")
        if durable is not None and "exchange" in vars(durable):
            exchange = vars(durable)["exchange"]
            counted = self._counted("exchange", exchange, 2)
            for module in [found for name, found in sys.modules.items() if name.startswith("everclip")]:
                for name in [name for name, value in vars(module).items() if value is exchange]:
                    setattr(module, name, counted)

    @staticmethod
    def _writes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        file, *more = args
        mode = kwargs.get("mode", more[0] if more else "r")
        new = not {*"wx+"}.isdisjoint(mode)  # one that is appended to is as it was
        return new and not isinstance(file, int)

    @staticmethod
    def _makes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return bool(kwargs.get("flags", args[1] if len(args) > 1 else 0) & (os.O_CREAT | os.O_TRUNC))

    def _opening(self, function: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        counted = self._counted("open", function, 1)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (counted if writes(args, kwargs) else function)(*args, **kwargs)

        return call

    def _counted(
        self, name: str, function: Callable[..., Any], paths: int, inner: bool = False
    ) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            own = [self._place(arg, kwargs.get("dir_fd")) for arg in args[:paths]]
            root = self.strike.folder
            mine = not paths or any(place == root or place.startswith(root + os.sep) for place in own)
            if not mine or vars(self._nested).get("inside"):
                return function(*args, **kwargs)
            shown = " ".join([name, *(os.path.relpath(place, root) for place in own)])
            with self._lock:
                self.calls.append(shown)
                struck = len(self.calls) == self.strike.at
            if struck and not self.strike.after:
                self.hit()
            vars(self._nested)["inside"] = not inner
            try:
                return function(*args, **kwargs)
            finally:
                vars(self._nested)["inside"] = False
                if struck and self.strike.after:
                    self.hit()

        return call

    @staticmethod
    def _place(given: Any, within: int | None) -> str:
        """The path of a path, or of an open file."""
        if isinstance(given, int):
            return os.readlink(f"/proc/self/fd/{given}")
        if isinstance(given, str | bytes | os.PathLike):
            base = os.getcwd() if within is None else os.readlink(f"/proc/self/fd/{within}")
            return os.path.join(base, os.path.normpath(os.fsdecode(given)))
        return ""

    def hit(self) -> None:
        """Do to this process what is to be done."""
        os.kill(os.getpid(), signal.SIGKILL if self.strike.what == "kill" else signal.SIGSTOP)

    def write(self) -> None:
        """Write the calls to the log."""
        if self.strike.log is not None:
            Path(self.strike.log).write_text(json.dumps(self.calls))


def install(strike: Strike) -> Striker | None:
    """Count the calls of this process, or have those of its sweep's children counted."""
    if not strike.children:
        striker = Striker(strike)
        striker.install()
        return striker
    root = Path(__file__).parents[2]
    os.environ[VARIABLE] = json.dumps(strike)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])

    class Popen(subprocess.Popen):
        """Starts this module in the place of a sweep's child."""

        def __init__(self, args: Any, *more: Any, **options: Any) -> None:
            words = [__name__ if word == CHILD else word for word in args]
            super().__init__(words, *more, **options)

    subprocess.Popen = Popen
    return None


if __name__ == "__main__":
    import everclip.cli.app
    import everclip.system.atomic  # noqa: F401  whose calls are counted

    found = Striker(Strike(*json.loads(os.environ[VARIABLE])))
    found.install()
    try:
        runpy.run_module(CHILD, run_name="__main__", alter_sys=True)
    finally:
        found.write()
