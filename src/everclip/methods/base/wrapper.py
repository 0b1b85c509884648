"""Wrap a method around another one: whatever it does not say itself, the other one does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Images, Method, MethodConfig, Phase, Prompts, Task
from everclip.methods.base.sample_table import SampleTable


class Wrapper(Method):
    """Hand everything to the method ``inner``, which is a module of its own with a state of its own."""

    def __init__(self, config: MethodConfig, prompts: Prompts, inner: Method) -> None:
        super().__init__(config, prompts)
        self.inner = inner
        self.uses_memory, self.needs_exemplars = inner.uses_memory, inner.needs_exemplars
        self.trains, self.reads = inner.trains, inner.reads
        self.shares, self.light, self.shards = inner.shares, inner.light, inner.shards

    @property
    def memory_policy(self) -> Literal["random", "herding", "score"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The policy by which the other method's exemplars are chosen."""
        return self.inner.memory_policy

    def phases(self, task: Task) -> list[Phase]:
        return self.inner.phases(task)

    def grow(self, clip: Clip, task: Task) -> None:
        self.inner.grow(clip, task)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        self.inner.begin_task(clip, task, train)

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        self.inner.begin_phase(clip, phase)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        return self.inner.trainable(clip, phase)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return self.inner.encode(clip, batch, phase)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return self.inner.loss(features, batch, phase)

    def penalty(self, clip: Clip) -> dict[str, Tensor]:
        return self.inner.penalty(clip)

    def after_step(self, clip: Clip) -> None:
        self.inner.after_step(clip)

    def diagnostics(self) -> dict[str, float]:
        return self.inner.diagnostics()

    def class_weights(self) -> dict[int, float]:
        return self.inner.class_weights()

    def class_losses(self) -> dict[int, float]:
        return self.inner.class_losses()

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        return self.inner.features(clip, images)

    def scores(self, clip: Clip, batches: Iterable[Batch]) -> dict[int, float]:
        return self.inner.scores(clip, batches)

    def tables(self) -> dict[str, SampleTable]:
        return self.inner.tables()

    def drop(self, ids: NDArray[Any]) -> None:
        self.inner.drop(ids)

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        self.inner.end_task(clip, task, new, memory)

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        return self.inner.classifier(clip, labels)

    def get_extra_state(self) -> dict[str, Any]:
        """Return nothing: ``inner`` has its own."""
        return {}

    def set_extra_state(self, state: Any) -> None:
        """Restore nothing."""

    def state_bytes(self) -> int:
        return self.inner.state_bytes()
