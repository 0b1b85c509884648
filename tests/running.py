"""Running whole trainings in tests."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everclip.config import Config, load_config
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.system.signals import Stop, Stopped
from everclip.training.loop import train

TIMES = {"seconds", "images_per_second", "peak_memory_bytes", "finished"}
"""Keys of results.json that differ from run to run."""

WIDE = {"method=ranpac", "method=rail", "method=vis"}
"""Methods whose state has 800 MB or more by default."""
SHORT = {"method=mg_clip": "method.head_epochs=1", "method=bofa": "method.safe_epochs=1"}
"""Options of methods whose phases have epochs of their own."""


def configured(*tokens: str) -> Config:
    """A small run's config: three tasks, one epoch, batches of eight; a file's, where the first token names one."""
    if tokens[0].endswith(".toml"):
        return resolve(load_config(tokens))
    small = ["scenario.tasks=3", "train.epochs=1", "train.batch_size=8", "memory.budget=12", "device=cpu"]
    small.append("references=none")  # measuring them takes longer than the run itself
    given = {token.partition("=")[0] for token in tokens}
    if "memory.per_class" in given:
        given.add("memory.budget")
    if WIDE & {*tokens}:
        small.append("method.width=64")
    small += [option for method, option in SHORT.items() if method in tokens]
    return resolve(load_config([t for t in small if t.partition("=")[0] not in given] + list(tokens)))


def run(out: Path, *tokens: str) -> dict[str, Any]:
    """Results of a small run in the folder ``out``."""
    with Run.open(configured(*tokens, f"out={out}")) as opened:
        return train(opened, Progress())


class _Asking(Progress):
    """Asks a run to stop after some optimizer steps."""

    def __init__(self, stop: Stop, after: int) -> None:
        super().__init__()
        self._stop, self._after = stop, after

    def step(self, note: str = "", count: int = 1) -> None:
        self._after -= note.startswith("loss")
        if self._after == 0:
            self._stop.ask()


def run_for(out: Path, steps: int, *tokens: str) -> dict[str, Any] | None:
    """Results of a small run in ``out``, or None where it stopped, saved, after so many optimizer steps."""
    stop = Stop()
    with Run.open(configured(*tokens, f"out={out}")) as opened:
        try:
            return train(opened, _Asking(stop, steps), stop)
        except Stopped:
            return None


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what a clock says."""
    return {key: value for key, value in results.items() if key not in TIMES}


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without what a clock says."""
    return [timeless(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
