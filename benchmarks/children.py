"""Python processes that a benchmark starts and measures: processor seconds and peak memory.

On Linux a process inherits the peak of the one that starts it: import no torch where a peak is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Child:
    """What one process took.

    Args:
        seconds: of the processor, in user mode and in the kernel.
        wall: seconds from its start to its end.
        peak: largest resident size, bytes.
        output: what it printed to stdout.
        errors: what it printed to stderr.
    """

    seconds: float
    wall: float
    peak: int
    output: str
    errors: str


def python(words: Sequence[str], code: int = 0, source: Path | None = None) -> Child:
    """Run ``python WORDS`` on one thread. Raises RuntimeError where it ends with an exit code other than ``code``.

    Args:
        source: the folder that the package is taken from; None: the installed one.
    """
    path = {} if source is None else {"PYTHONPATH": str(source)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *words],
            stdout=output,
            stderr=errors,
            env=os.environ | path | {"OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        found = Child(
            usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024, output.read(), errors.read()
        )
    if child.returncode != code:
        raise RuntimeError(f"python {' '.join(words)} ended with {child.returncode}: {found.errors[-500:]}")
    return found
