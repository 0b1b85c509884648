"""Submit the runs of a sweep as an array of SLURM jobs (``--slurm``), through submitit (the extra ``slurm``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everclip.errors import RunError, UserError
from everclip.sweep.pool import STOPPED


class Command:
    """``everclip WORDS`` as a job, which is queued again and continues if it is preempted or runs out of time."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __call__(self) -> int:
        """Run the command and return its exit code. Raises RunError where it fails, so that the job fails too."""
        code = subprocess.run([sys.executable, "-P", "-m", "everclip", *self.words], check=False).returncode
        if code and code not in STOPPED:
            raise RunError(f"everclip {' '.join(self.words)}: exit code {code}")
        return code

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Return what submitit is to queue again: the run directory holds all state."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(Command(self.words))


def submit(
    commands: Sequence[Sequence[str]], folder: Path, settings: Sequence[str], cluster: str = "slurm"
) -> list[str]:
    """Submit commands as one array, and return the jobs' ids.

    Args:
        folder: for submitit's files.
        settings: KEY=VALUE of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min=240``.
        cluster: "slurm", or "local" for processes on this machine.

    Raises:
        UserError: submitit is not installed, there is no SLURM, or a setting is unknown.
    """
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError('--slurm needs submitit: pip install "everclip[slurm]", or use --print') from error
    values = {key: _value(text) for key, _, text in (word.partition("=") for word in settings)}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**values)
    except RuntimeError as error:
        raise UserError(f"--slurm: {error}: run this on a machine with sbatch, or use --print") from error
    except (NameError, TypeError, AssertionError) as error:
        raise UserError(f"--slurm-set: {error}") from error
    with _safe_path(), executor.batch():
        jobs = [executor.submit(Command(words)) for words in commands]
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


def _value(text: str) -> Any:
    """Return the value of a JSON text, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
