"""Adapt in the first session: the first task trains with another method's loss, later ones train nothing.

A method that can update its old statistics continues training if there are exemplars (``follows``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Method, MethodConfig, Prompts, Task, Untrained
from everclip.methods.base.registry import method_class, options_of


class FirstSessionConfig(MethodConfig):
    """Options of the first task's training."""

    wraps: ClassVar = ("adapt", "adapt_options")

    adapt: Literal["none", "clip", "gcl", "gdro", "finetune"] = Field(
        default="none", description="method whose loss trains the first task"
    )
    adapt_options: dict[str, int | float | bool | str] = Field(default={}, description="options of adapt")


class FirstSession(Untrained):
    """Lend its training to another method for the first task, and after it only where it follows.

    That method's state is dropped at the first task's end if no later task needs it.

    Attributes:
        follows: exemplars per class from which on later tasks train too; None: never.
        following: whether the present task is a later one that trains.
        counts: images learned of each class; set by a method that follows.
    """

    follows: int | None = None
    counts: Int64[Tensor, " c"]

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        lends = isinstance(config, FirstSessionConfig) and config.adapt != "none"
        self.can(trains=lends, fits="end" if lends else "never")
        self.following = False
        # in a tuple, so that it is not a submodule
        self._first: tuple[Method, ...] = ()
        if isinstance(config, FirstSessionConfig) and lends:
            options = options_of(config.adapt, config.adapt_options, "method.adapt_options.")
            learner = method_class(config.adapt).create(options, prompts)
            self._first = (learner,)
            lent = learner.capabilities
            self.can(shares=lent.shares, light=lent.light, shards=lent.shards)

    @property
    def goes_on(self) -> bool:
        """Whether a later task can train."""
        return self.follows is not None and bool(self._first)

    def learner(self, task: Task) -> Method:
        return self._first[0] if self._first and (task.index == 0 or self.following) else self

    def grow(self, clip: Clip, task: Task) -> None:
        if self.follows is not None:
            for first in self._first:
                first.to(clip.device)
                first.grow(clip, task)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        self.following = task.index > 0 and self.goes_on and self._enough(task, train)
        shown = train.select(self.trains_on(train))
        for first in self._first if task.index == 0 or self.following else ():
            if self.follows is None:
                first.to(clip.device)
                first.grow(clip, task)
            first.begin_task(clip, task, shown)

    def _enough(self, task: Task, train: ImageSet) -> bool:
        """Return whether there are exemplars enough to go on training: ``follows`` per learned class on average."""
        old = (~np.isin(train.ids, task.train.ids)).sum()
        return bool(old >= (self.follows or 0) * int((self.counts > 0).sum()))

    def drop(self, ids: NDArray[Any]) -> None:
        for first in self._first:
            first.drop(ids)

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"first": [method.state_dict() for method in self._first]}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self._first = self._first[: len(state["first"])]  # none after the first task
        for method, saved in zip(self._first, state["first"], strict=True):
            method.load_state_dict(saved)

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        self.following = False
        # batches can be read only once, and the first task's end needs none from the memory
        if self.follows is None or (task.index == 0 and next(iter(memory), None) is None):
            self._first = ()

    def state_bytes(self) -> int:
        return super().state_bytes() + sum(first.state_bytes() for first in self._first)
