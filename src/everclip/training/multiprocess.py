"""Share a run among processes: the first owns the run directory, the others only read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everclip.config import Config
from everclip.distributed import collectives, launch
from everclip.errors import UserError
from everclip.runs.run import Run


@contextmanager
def shared(config: Config, make: Callable[[], Run]) -> Iterator[Run]:
    """Open a run for all processes: locked, from ``make``, in the first; in the others a run that writes nothing.

    Raises:
        UserError: as opening a run does; torchrun would restart a run without a named directory.
    """
    if collectives.size() > 1 and launch.restarts() and config.out is None:
        raise UserError(
            "torchrun --max-restarts repeats the command, which continues the run in out: give out=PATH"
        )
    if collectives.rank() > 0:
        yield Follower(Path(collectives.from_first(None)), config)
        return
    with make() as run, launch.ending():
        collectives.from_first(str(run.path))
        yield run


class Follower(Run):
    """A run's directory in the processes after the first: readable only."""

    writes = False

    def __init__(self, path: Path, config: Config) -> None:
        super().__init__(path, config.model_copy(update={"out": str(path)}))

    def log(self, event: str, **fields: Any) -> None:
        """Do nothing."""

    def log_bytes(self) -> int:
        """Return 0."""
        return 0

    def cut_log(self, size: int) -> None:
        """Do nothing."""

    def write(self, name: str, content: str | bytes) -> None:
        """Do nothing."""
