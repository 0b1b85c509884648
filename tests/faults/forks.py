"""Command lines in forks of a process that has everything imported: killed, starved of disk, signalled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended: its exit code (negative: the signal that killed it), what it said, processor seconds."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return (self.err.splitlines() or [""])[-1]


class Forks:
    """A server of forks. A context manager."""

    def __enter__(self) -> Forks:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()

    def run(
        self,
        argv: Sequence[str],
        at: int | None = None,
        part: str | None = None,
        what: str = "kill",
        after: float | None = None,
        trace: Path | None = None,
    ) -> Ended:
        """Run ``everclip ARGV`` and wait for its end.

        Args:
            at, part, what: the event, of a part or of all, at which it suffers what (``server``).
            after: kill it from outside after so many seconds.
            trace: file for the parts of its events.
        """
        order = {"argv": [*argv], "at": at, "part": part, "what": what, "after": after}
        order["trace"] = trace and str(trace)
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        assert self._server.stdout is not None
        return Ended(**json.loads(self._server.stdout.readline()))
