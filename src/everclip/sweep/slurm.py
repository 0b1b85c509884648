"""Submit the runs of a sweep as an array of SLURM jobs (``--slurm``), through submitit (the extra ``slurm``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from everclip.errors import RunError, UserError, check_range
from everclip.sweep.pool import EVERY, GRACE, STOPPED

TIMEOUTS = "slurm_max_num_timeout"
"""The setting that submitit's executor takes only when it is made."""


class Command:
    """``everclip WORDS`` as a job, which is queued again and continues if it is preempted or runs out of time."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command and return its exit code. Raises RunError where it fails, so that the job fails too."""
        self._child = subprocess.Popen([sys.executable, "-P", "-m", "everclip", *self.words])
        try:
            # wait() would hold a lock that checkpoint() needs, and a signal calls that in this very thread
            while (code := self._child.poll()) is None:
                time.sleep(EVERY)
        finally:
            self._stop()
        if code and code not in STOPPED:
            raise RunError(f"everclip {' '.join(self.words)}: exit code {code}")
        return code

    def _stop(self) -> None:
        """Ask the command to save its progress and end; kill it after ``GRACE`` seconds."""
        if self._child is not None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(GRACE)
            self._child.kill()

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Have the command save its progress, and return what submitit is to queue again.

        Submitit calls it in the handler of its signal, and then ends the process that waits for the command.
        """
        self._stop()
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(Command(self.words))


def submit(
    commands: Sequence[Sequence[str]], folder: Path, settings: Sequence[str], cluster: str = "slurm"
) -> list[str]:
    """Submit commands as one array, and return the jobs' ids.

    Args:
        folder: for submitit's files.
        settings: KEY=VALUE of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min=240``, or
            ``TIMEOUTS``.
        cluster: "slurm", or "local" for processes on this machine.

    Raises:
        UserError: submitit is not installed, there is no SLURM, a setting is unknown, or SLURM refuses the jobs.
    """
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError('--slurm needs submitit: pip install "everclip[slurm]", or use --print') from error
    values = {key: _value(text) for key, _, text in (word.partition("=") for word in settings)}
    timeouts = {TIMEOUTS: values.pop(TIMEOUTS)} if TIMEOUTS in values else {}
    check_range(f"--slurm-set {TIMEOUTS}", timeouts.get(TIMEOUTS), 0, 1000)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **timeouts)
        executor.update_parameters(**values)
    except RuntimeError as error:
        raise UserError(f"--slurm: {error}: run this on a machine with sbatch, or use --print") from error
    except (NameError, TypeError, AssertionError) as error:
        raise UserError(f"--slurm-set: {_one_line(error)}") from error
    try:
        with _safe_path(), executor.batch():
            jobs = [executor.submit(Command(words)) for words in commands]
    except RuntimeError as error:
        raise UserError(f"--slurm: sbatch says: {_one_line(error)}: change it with --slurm-set") from error
    return [job.job_id for job in jobs]


@contextmanager
def _safe_path() -> Iterator[None]:
    """Start the jobs as with ``python -P``: otherwise modules of the current folder come before the installed ones."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _value(text: str) -> Any:
    """Return the value of a JSON text, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
