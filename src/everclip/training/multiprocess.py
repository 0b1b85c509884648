"""A run of several processes: the first has its directory, the others read it and write nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everclip.config import Config
from everclip.distributed import collectives, launch
from everclip.errors import UserError
from everclip.methods.base.method import Method
from everclip.runs.run import Run
from everclip.training.plan import Plan


@contextmanager
def shared(config: Config, make: Callable[[], Run]) -> Iterator[Run]:
    """An open run of all processes: in the first ``make``'s, locked; in the others one that writes nothing.

    Raises:
        UserError: as opening a run does; torchrun is to restart a run whose directory nobody has named.
    """
    if collectives.size() > 1 and launch.restarts() and config.out is None:
        raise UserError(
            "torchrun --max-restarts starts the same command again, which goes on where out says: give out=PATH"
        )
    if collectives.rank() > 0:
        yield Follower(Path(collectives.from_first(None)), config)
        return
    with make() as run:
        collectives.from_first(str(run.path))
        yield run


def check(plan: Plan) -> None:
    """Refuse what several processes cannot do.

    Raises:
        UserError: of the method, its options or the batch size.
    """
    config, method, count = plan.config, plan.method, collectives.size()
    name = config.method.name
    if count == 1:
        return
    if not method.shares:
        raise UserError(
            f"method={name} with these options asks its towers for more than the batch, which {count} processes cannot"
            " share: start one process, or write another method"
        )
    if config.distributed.gather == "light" and not method.light:
        raise UserError(
            f"distributed.gather=light, but the loss of method={name} with these options has no such form:"
            " write distributed.gather=gradient"
        )
    if config.distributed.shard:
        _check_shards(config, method)
    if config.train.batch_size < count:
        raise UserError(
            f"train.batch_size={config.train.batch_size} is that of all {count} processes together:"
            f" write at least {count}"
        )


def _check_shards(config: Config, method: Method) -> None:
    """Refuse what towers that are shared out cannot do. Raises UserError."""
    if not method.shards:
        raise UserError(
            f"distributed.shard=true, but method={config.method.name} reads the towers' weights at each step:"
            " write distributed.shard=false, or another method"
        )
    if config.tune.startswith("lora"):
        raise UserError(
            f"distributed.shard=true, but tune={config.tune} trains a few weights, whose gradients and moments are"
            " small: write distributed.shard=false"
        )
    light = config.distributed.gather == "light"
    if light or config.train.accumulate > 1:
        given = "distributed.gather=light" if light else "train.accumulate"
        raise UserError(
            f"distributed.shard=true needs as many passes of the towers in every process, and {given} makes others:"
            " write distributed.gather=gradient train.accumulate=1, and train.checkpointing=true for less memory"
        )


class Follower(Run):
    """A run's directory as the processes after the first have it."""

    writes = False

    def __init__(self, path: Path, config: Config) -> None:
        super().__init__(path, config.model_copy(update={"out": str(path)}))

    def log(self, event: str, **fields: Any) -> None:
        """Nothing."""

    def log_bytes(self) -> int:
        """0."""
        return 0

    def cut_log(self, size: int) -> None:
        """Nothing."""

    def write(self, name: str, content: str | bytes) -> None:
        """Nothing."""
