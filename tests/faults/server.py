"""A process that has the package imported, and forks a child for each command line that it is told.

It reads a JSON object a line, a ``forks.order``, and answers with ``{"status", "out", "err", "seconds"}`` when the
child has ended. The child counts events, the calls that code of the package makes and takes in its main thread; at the
event number ``at`` of a part, or of all, while a run trains it suffers ``what``: "kill" (SIGKILL), "full" (no file can
grow from there on), or a signal's name. ``after`` so many seconds it is killed. With ``trace``, a file, it writes which
part of the package each event belongs to. ``strike`` is explained in ``strikes``.

An object with "pair", a list of two orders, has two children: the second begins when the first stops, where it is to be
struck so, else after "delay" seconds. The first goes on when the second has ended, or waits for it ("patience"
seconds). The answer is a list of three: how both ended, and whether the first did stop. With "warm" the server itself
calls a function, and what that keeps all later children have.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import everclip
from everclip.cli.app import main
from tests.faults import strikes
from tests.faults.strikes import Strike

PACKAGE = Path(everclip.__file__).parent
PARTS = ("step", "save", "memory", "test", "between")
_OWNERS = {
    "system/checkpoint.py": "save",
    "training/checkpointer.py": "save",
    "data/memory.py": "memory",
    "data/policies/": "memory",
    "training/evaluate.py": "test",
    "training/testing.py": "test",
    "training/retrieve.py": "test",
    "runs/run.py": "between",
    "training/recorder.py": "between",
    "training/loop.py": "between",
    "training/restore.py": "between",
}
"""The part that the calls of a file, or of a folder's files, belong to; those of other files belong to a step."""
assert all((PACKAGE / name).exists() for name in _OWNERS), "a file has moved: no kill would hit its part"


def _owner(file: str) -> str | None:
    """The part that the calls of a file belong to; None outside of the package."""
    if not file.startswith(f"{PACKAGE}/"):
        return None
    below = file.removeprefix(f"{PACKAGE}/")
    return next((part for name, part in _OWNERS.items() if below.startswith(name)), "step")


class Counter:
    """Counts events as a profile function, and strikes at one of them.

    Args:
        at: the number of the event, from 1; None counts on.
        part: whose events count; None: those of all.

    Attributes:
        parts: for each event while a run trains, the number of its part.
    """

    def __init__(self, at: int | None, part: str | None, what: str) -> None:
        self.at, self.what = at, what
        self.wanted = None if part is None else PARTS.index(part)
        self.count, self.parts, self.training = 0, bytearray(), False
        self._part: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        part = self._part.get(name)
        if part is None:
            owner = _owner(name)
            part = self._part[name] = -1 if owner is None else PARTS.index(owner)
        if part < 0:
            return
        if name.endswith("loop.py") and frame.f_code.co_name == "train" and event in ("call", "return"):
            self.training = event == "call"
        if not self.training:
            return
        self.parts.append(part)
        self.count += self.wanted is None or part == self.wanted
        if self.count == self.at:
            sys.setprofile(None)
            strike(self.what)


def strike(what: str) -> None:
    """Do to this process what its name says."""
    if what == "full":
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    else:
        os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.Signals[what])


def _named(call: str) -> Callable[..., int | None]:
    """A function as MODULE:FUNCTION."""
    module, _, name = call.partition(":")
    return vars(importlib.import_module(module))[name]


def child(order: dict[str, Any]) -> int:
    """Run a command line, or a function of tests with its words; returns the exit code."""
    os.environ.update(order["env"] or {})
    os.chdir(order["cwd"] or ".")
    run = _named(order["call"]) if order["call"] else main
    striker = strikes.install(Strike(*order["strike"])) if order["strike"] else None
    counter = Counter(order["at"], order["part"], order["what"])
    if order["at"] or order["trace"]:
        sys.setprofile(counter)
    code = run(order["argv"])
    sys.setprofile(None)
    if order["trace"]:
        Path(order["trace"]).write_bytes(bytes(counter.parts))
    if striker is not None:
        striker.write()
    return code or 0


class Child:
    """A forked process that does what an order says."""

    def __init__(self, order: dict[str, Any]) -> None:
        pipes = [os.pipe(), os.pipe()]
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, (_, end) in enumerate(pipes, 1):
                os.dup2(end, number)
            code = 99
            try:
                code = child(order)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self._said = ["", ""]
        self._status: int | None = None
        self._seconds = 0.0
        self._readers = [threading.Thread(target=self._read, args=pair) for pair in enumerate(pipes)]
        for _, end in pipes:
            os.close(end)
        for reader in self._readers:
            reader.start()
        limit = LONGEST if order["after"] is None else order["after"]
        self._timer = threading.Timer(limit, os.kill, (self.pid, signal.SIGKILL))
        self._timer.start()

    def _read(self, number: int, ends: tuple[int, int]) -> None:
        with open(ends[0], encoding="utf-8", errors="replace") as file:
            self._said[number] = file.read()

    def stopped(self) -> bool:
        """Wait until it has ended or stopped, and say whether it has stopped."""
        _, status, usage = os.wait4(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._status = os.waitstatus_to_exitcode(status)
        self._seconds = usage.ru_utime + usage.ru_stime
        return False

    def over(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        end = time.monotonic() + seconds
        for reader in self._readers:
            reader.join(max(0.0, end - time.monotonic()))
        return not any(reader.is_alive() for reader in self._readers)

    def ended(self) -> dict[str, Any]:
        """Wait for its end, and tell of it."""
        for reader in self._readers:
            reader.join()
        self._timer.cancel()
        self._timer.join()
        if self._status is None:
            self.stopped()
        out, err = self._said
        return {"status": self._status, "out": out, "err": err, "seconds": self._seconds}


LONGEST = 300.0
"""Seconds after which a child is killed that does not end."""


def pair(order: dict[str, Any]) -> list[Any]:
    """Two children at once."""
    first = Child(order["pair"][0])
    stops = order["pair"][0]["strike"] is not None
    stopped = stops and first.stopped()
    time.sleep(0 if stops else order["delay"])
    second = Child(order["pair"][1])
    if stopped:
        second.over(order["patience"])
        os.kill(first.pid, signal.SIGCONT)
    return [first.ended(), second.ended(), stopped]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(everclip.__path__, "everclip."):
        if module.name != "everclip.__main__":
            with contextlib.suppress(ImportError):  # those of an extra that is not there
                importlib.import_module(module.name)
    importlib.import_module("matplotlib")
    for line in sys.stdin:
        told = json.loads(line)
        if "warm" in told:
            print(json.dumps(_named(told["warm"])()), flush=True)
        else:
            print(json.dumps(pair(told) if "pair" in told else Child(told).ended()), flush=True)
