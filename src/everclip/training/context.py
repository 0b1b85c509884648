"""Hold everything that one training run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from everclip.data.loader import Loader
from everclip.data.memory import Memory
from everclip.methods.base.method import Method
from everclip.models.clip import Clip
from everclip.system.progress import Progress
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.recorder import Recorder


class Journal:
    """Follow training without keeping anything; a run's journal writes its log and checkpoints."""

    def log(self, event: str, **values: Any) -> None:
        """Take a line of the log."""

    def enter(self, phase: int) -> None:
        """Take note that a phase begins, before the method prepares for it."""

    def resume(self, update: Update, phase: int, steps: int) -> int:
        """Return how many batches of a phase that has begun are done already; the update continues after them."""
        return 0

    def step(self, update: Update, phase: int, done: int) -> None:
        """Take note of a step, ``done`` batches of the phase in all."""

    def finish(self, stage: int) -> None:
        """Take note that task ``stage`` is learned."""


@dataclass(eq=False)
class Context:
    """A plan with its model, and what measures and follows its training."""

    plan: Plan
    clip: Clip
    method: Method
    memory: Memory
    loader: Loader
    record: Recorder
    progress: Progress
    journal: Journal = field(default_factory=Journal)
