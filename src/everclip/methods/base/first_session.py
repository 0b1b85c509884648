"""Adapt in the first session: the first task trains with another method's loss, later ones train nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Method, MethodConfig, Phase, Prompts, Task
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


class FirstSession(Method):
    """Lend its training to another method for the first task, and to nothing after it.

    That method's state is dropped at the task's end: no later task asks for it.
    """

    def __init__(self, config: FirstSessionConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.trains = config.adapt != "none"
        # in a tuple, so that it is no part of this module
        self._first: tuple[Method, ...] = ()
        if config.adapt != "none":
            options = options_of(config.adapt, config.adapt_options, "method.adapt_options.")
            learner = method_class(config.adapt).create(options, prompts)
            self._first = (learner,)
            self.shares, self.light, self.shards = learner.shares, learner.light, learner.shards

    @property
    def _learner(self) -> Method:
        assert self._first, "there is no training phase after the first task, or without method.adapt"
        return self._first[0]

    def phases(self, task: Task) -> list[Phase]:
        return self._learner.phases(task) if self._first and task.index == 0 else []

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        if self._first and task.index == 0:
            self._learner.to(clip.device)
            self._learner.grow(clip, task)
            self._learner.begin_task(clip, task, train)

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        self._learner.begin_phase(clip, phase)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        return self._learner.trainable(clip, phase)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return self._learner.encode(clip, batch, phase)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return self._learner.loss(features, batch, phase)

    def penalty(self, clip: Clip) -> dict[str, Tensor]:
        return self._learner.penalty(clip)

    def after_step(self, clip: Clip) -> None:
        self._learner.after_step(clip)

    def diagnostics(self) -> dict[str, float]:
        return self._learner.diagnostics()

    def class_weights(self) -> dict[int, float]:
        return self._learner.class_weights()

    def class_losses(self) -> dict[int, float]:
        return self._learner.class_losses()

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"first": [method.state_dict() for method in self._first]}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        for method, saved in zip(self._first, state["first"], strict=False):  # none after the first task
            method.load_state_dict(saved)

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        self._first = ()
