"""Adapt in the first session: the first task trains with another method's loss, later ones train nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Method, MethodConfig, Prompts, Task, Untrained
from everclip.methods.base.registry import method_class, options_of


class FirstSessionConfig(MethodConfig):
    """Options of the first task's training."""

    wraps: ClassVar[tuple[str, str] | None] = ("adapt", "adapt_options")

    adapt: Literal["none", "clip", "gcl", "gdro", "finetune"] = Field(
        default="none",
        description="method whose loss trains the model in the first task; later ones train nothing",
    )
    adapt_options: dict[str, int | float | bool | str] = Field(
        default={}, description="that method's options"
    )


class FirstSession(Untrained):
    """Lend its training to another method for the first task, and to nothing after it.

    That method's state is dropped at the task's end: no later task asks for it.
    """

    def __init__(self, config: FirstSessionConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(trains=config.adapt != "none")
        # in a tuple, so that it is no part of this module
        self._first: tuple[Method, ...] = ()
        if config.adapt != "none":
            options = options_of(config.adapt, config.adapt_options, "method.adapt_options.")
            learner = method_class(config.adapt).create(options, prompts)
            self._first = (learner,)
            lent = learner.capabilities
            self.can(shares=lent.shares, light=lent.light, shards=lent.shards)

    def learner(self, task: Task) -> Method:
        return self._first[0] if self._first and task.index == 0 else self

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        if self._first and task.index == 0:
            (first,) = self._first
            first.to(clip.device)
            first.grow(clip, task)
            first.begin_task(clip, task, train)

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"first": [method.state_dict() for method in self._first]}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        for method, saved in zip(self._first, state["first"], strict=False):  # none after the first task
            method.load_state_dict(saved)

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        self._first = ()
