"""A process that has the package imported, and forks a child for each command line that it is told.

It reads a JSON object a line, ``{"argv", "at", "part", "what", "after", "trace"}``, and answers with ``{"status",
"out", "err", "seconds"}`` when the child has ended. The child counts events, the calls that code of the package makes
and takes in its main thread; at the event number ``at`` of a part, or of all, while a run trains it suffers ``what``:
"kill" (SIGKILL), "full" (no file can grow from there on), or a signal's name. ``after`` so many seconds it is killed.
With ``trace``, a file, it writes which part of the package each event belongs to.
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
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import everclip
from everclip.cli.app import main

PACKAGE = str(Path(everclip.__file__).parent)
PARTS = ("step", "save", "memory", "test", "between")
_OWNERS = {
    "checkpoint.py": "save",
    "keeper.py": "save",
    "memory.py": "memory",
    "policies.py": "memory",
    "evaluate.py": "test",
    "run.py": "between",
    "record.py": "between",
    "loop.py": "between",
    "restore.py": "between",
}
"""The part that a file's calls belong to; those of other files belong to a step."""


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
            owner = _OWNERS.get(os.path.basename(name), "step")
            part = self._part[name] = PARTS.index(owner) if name.startswith(PACKAGE) else -1
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


def child(order: dict[str, Any]) -> int:
    """Run a command line; returns its exit code."""
    counter = Counter(order["at"], order["part"], order["what"])
    if order["at"] or order["trace"]:
        sys.setprofile(counter)
    code = main(order["argv"])
    sys.setprofile(None)
    if order["trace"]:
        Path(order["trace"]).write_bytes(bytes(counter.parts))
    return code


def _said(end: int) -> str:
    """All that comes out of a pipe."""
    with open(end, encoding="utf-8", errors="replace") as file:
        return file.read()


def serve(order: dict[str, Any]) -> None:
    """Fork a child and tell how it ends."""
    pipes = [os.pipe(), os.pipe()]
    pid = os.fork()
    if pid == 0:
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
    for _, end in pipes:
        os.close(end)
    timer = threading.Timer(order["after"] or 0, os.kill, (pid, signal.SIGKILL))
    if order["after"] is not None:
        timer.start()
    out, err = (_said(end) for end, _ in pipes)
    if order["after"] is not None:
        timer.cancel()
        timer.join()
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    ended = {"status": os.waitstatus_to_exitcode(status), "out": out, "err": err, "seconds": seconds}
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(everclip.__path__, "everclip."):
        if module.name != "everclip.__main__":
            with contextlib.suppress(ImportError):  # those of an extra that is not there
                importlib.import_module(module.name)
    importlib.import_module("matplotlib")
    for line in sys.stdin:
        serve(json.loads(line))
