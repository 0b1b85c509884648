"""Command lines in forks of a process that has everything imported: killed, starved of disk, signalled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.faults.strikes import Strike

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
        **more: Any,
    ) -> Ended:
        """Run ``everclip ARGV`` and wait for its end.

        Args:
            at, part, what: the event, of a part or of all, at which it suffers what (``server``).
            after: kill it from outside after so many seconds.
            trace: file for the parts of its events.
            more: of ``order``.
        """
        given = {"at": at, "part": part, "what": what, "after": after, "trace": trace and str(trace)}
        return self.do(order(argv, **more) | given)

    def do(self, what: dict[str, Any]) -> Ended:
        """Do what an ``order`` says."""
        return Ended(**self._ask(what))

    def both(
        self, first: dict[str, Any], second: dict[str, Any], delay: float = 0.0, patience: float = 1.0
    ) -> tuple[Ended, Ended, bool]:
        """Run two orders at once, and wait for the end of both.

        Args:
            delay: seconds between their beginnings, where the first is not struck.
            patience: seconds that the first, stopped by its strike, leaves to the second before it goes on.

        Returns:
            how both ended, and whether the first was stopped.
        """
        one, two, stopped = self._ask({"pair": [first, second], "delay": delay, "patience": patience})
        return Ended(**one), Ended(**two), stopped

    def warm(self, call: str) -> None:
        """Have the server itself call ``MODULE:FUNCTION``, without words: what that keeps, all forks have."""
        self._ask({"warm": call})

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())


def order(
    argv: Sequence[str],
    strike: Strike | None = None,
    call: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a fork is told.

    Args:
        argv: the words after ``everclip``.
        strike: a call at which it is struck.
        call: ``MODULE:FUNCTION``, called with ``argv`` in the place of ``everclip``.
        cwd: the directory that it works in.
        env: variables of the environment.
    """
    none = {"at": None, "part": None, "what": "kill", "after": None, "trace": None}
    there = {"strike": strike, "call": call, "cwd": cwd and str(cwd), "env": env and {**env}}
    return {"argv": [*argv], **none, **there}
