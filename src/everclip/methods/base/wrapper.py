"""Wrap a method around another one: whatever it does not say itself, the other one does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Images, Method, MethodConfig, Prompts, Task, Untrained
from everclip.methods.base.sample_table import SampleTable


class Wrapper(Untrained):
    """Hand everything to the method ``inner``, which is a module of its own with a state of its own."""

    def __init__(self, config: MethodConfig, prompts: Prompts, inner: Method) -> None:
        super().__init__(config, prompts)
        self.inner = inner
        self.capabilities = inner.capabilities

    def learner(self, task: Task) -> Method:
        return self.inner.learner(task)

    def grow(self, clip: Clip, task: Task) -> None:
        self.inner.grow(clip, task)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        self.inner.begin_task(clip, task, train)

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

    def encoder(self, clip: Clip) -> Clip:
        return self.inner.encoder(clip)

    def get_extra_state(self) -> dict[str, Any]:
        """Return nothing: ``inner`` has its own."""
        return {}

    def set_extra_state(self, state: Any) -> None:
        """Restore nothing."""

    def state_bytes(self) -> int:
        return self.inner.state_bytes()
