"""Derive the classifiers of the closed-form methods exactly, from sums (sums.py) over the features of a frozen tower.

Sums do not depend on the order of what is summed: tasks in any order and all images at once give the same G, Q and n,
and so the same classifier.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor, nn

from everclip.config import MethodConfig
from everclip.methods.base.cost import Passes
from everclip.methods.base.first_session import FirstSession, FirstSessionConfig
from everclip.methods.base.method import Batch, Capabilities, Classifier, Clip, Images, Prompts, Task
from everclip.methods.shared.sums import Sums
from everclip.models.depths import Depths
from everclip.models.pooled import pooled

Rows = Float64[Tensor, "b m"]
Labels = Int64[Tensor, " b"]
Scores = tuple[Float64[Tensor, "m c"], Float64[Tensor, " c"]]
"""Weights and biases of a linear classifier."""


class Cells(NamedTuple):
    """Sums and counts of groups of images of one class each, and the label of each."""

    sums: Float64[Tensor, "k m"]
    counts: Int64[Tensor, " k"]
    owner: Int64[Tensor, " k"]


class StatisticsConfig(FirstSessionConfig):
    """Options of the features."""

    feature: Literal["projected", "pooled"] = Field(
        default="projected",
        description="unit-length features, or the image tower's output before its projection",
    )


class Statistics(FirstSession):
    """Sums G, Q and n over the images of all tasks, in fp64; no image is kept.

    The buffers have their final shape from the first task on: features of the model's width, rows for every class.

    Attributes:
        depths: what is read from the tower in place of its features; None: its features.
        tower: the image tower that is read at these depths; None: the model's.
    """

    capabilities = Capabilities(uses_memory=False)
    passes = Passes(lambda stage: (0.0, 0.0), "none", after=(0.0, 1.0))
    second_moments: ClassVar[bool] = True
    """Whether G is kept."""
    cosines: ClassVar[bool] = True
    """Whether scores lie in about -1..1, as cosines do; else they are logits."""

    gram: Float64[Tensor, "m m"]
    sums: Float64[Tensor, "c m"]
    counts: Int64[Tensor, " c"]

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self._pooled = isinstance(config, StatisticsConfig) and config.feature == "pooled"
        self.can(reads="pooled" if self._pooled else "features", centers=not self._pooled)
        self._built = False
        self.depths: Depths | None = None
        self.tower: nn.Module | None = None

    def read_at(self, depths: Depths) -> None:
        """Read the tower at these depths, in advance unless it trains in the first task."""
        trains = self.capabilities.trains
        reads = "pixels" if trains else "features"
        self.can(reads=reads, depths=None if trains else depths, centers=False)
        self.depths = depths

    # Sums -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def grow(self, clip: Clip, task: Task) -> None:
        """Make the buffers at the first task."""
        super().grow(clip, task)
        if not self._built:
            self.build(clip, self.extract(clip, clip.blank()).shape[1])
            self._built = True

    def build(self, clip: Clip, width: int) -> None:
        """Make the buffers for features of this width."""
        # Apple's GPUs have no fp64
        where = torch.device("cpu") if clip.device.type == "mps" else clip.device
        blank = Sums.empty(len(self.prompts.names), width, self.second_moments, where)
        for name in ("gram", "sums", "counts"):
            self.register_buffer(name, getattr(blank, name))

    @property
    def summed(self) -> Sums:
        """The buffers as ``Sums``: adding to these adds to the buffers."""
        return Sums(self.gram, self.sums, self.counts)

    def take(self, sums: Sums) -> None:
        """Replace its sums by a copy of others of the same width and classes."""
        where = self.counts.device
        self.sums, self.counts = sums.sums.to(where, copy=True), sums.counts.to(where, copy=True)
        if self.second_moments:
            self.gram = sums.gram.to(where, copy=True)

    def extract(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        """Return the tower's fp32 features of images."""
        if self.depths is not None:
            return self.depths.read(self.tower or clip.model.visual, clip.normalise(images))
        if self._pooled:
            return pooled(clip.model.visual, clip.normalise(images))
        return clip.encode_image(images)

    def lift(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """Return the features that are summed, from the tower's."""
        return features

    def extracted(self, clip: Clip, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tower's features ``[b, d]`` and the labels of each batch, on the devices where they are used."""
        for batch in batches:
            yield self.extract(clip, batch.images), batch.labels.to(self.counts.device)

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Add the task's images to the sums; those of the memory are in them already."""
        super().end_task(clip, task, new, memory)
        self.absorb(clip, task, new)

    def absorb(self, clip: Clip, task: Task, new: Iterable[Batch]) -> None:
        """Add the images of a task."""
        for features, labels in self.extracted(clip, new):
            self.add(self.rows(features), labels)

    def rows(self, features: Float[Tensor, "b d"]) -> Rows:
        """Return lifted features in fp64, on the device of the sums."""
        return self.lift(features).to(self.sums.device).double()

    def add(self, rows: Rows, labels: Labels) -> None:
        """Add images."""
        self.summed.add_(rows, labels)

    # Classifier -------------------------------------------------------------------------------------------------

    def silence(self, labels: list[int]) -> Float64[Tensor, " c"]:
        """Return 0 for labels that have been trained, -inf for the others."""
        return torch.where(self.counts[labels] > 0, 0.0, -torch.inf).double()

    @property
    def exact(self) -> bool:
        """Whether G, Q and n are kept, and each image counts in them once."""
        return self.second_moments

    def cells(self) -> Cells:
        """Return the sums of each class that has images."""
        there = self.counts > 0
        return Cells(self.sums[there], self.counts[there], there.nonzero()[:, 0])

    def shrinkage(self, cells: Cells) -> float | None:
        """Return s of discriminant.py, where the method has chosen it; else None."""
        return None

    def query(self, clip: Clip, images: Images) -> Rows:
        """Return the features that the classifier is applied to."""
        return self.rows(self.extract(clip, images))


class LinearStatistics(Statistics):
    """Sums from which a linear classifier follows."""

    @abstractmethod
    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        """Return the classifier of these labels; ``silence`` is the bias of those never trained."""

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        linear = Linear(lambda images: self.query(clip, images), *self.solve(clip, list(labels)))
        linear.to_logits = clip.logit_scale.exp().item() if self.cosines else 1.0
        return linear


class Linear(Classifier):
    """``W' f(images) + b`` in fp64; ``encode`` is f."""

    def __init__(
        self, encode: Callable[[Tensor], Tensor], weight: Float64[Tensor, "m c"], bias: Float64[Tensor, " c"]
    ) -> None:
        super().__init__()
        self.encode, self.weight, self.bias = encode, weight, bias

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        return self.scored(self.encode(images))

    def scored(self, rows: Rows) -> Float64[Tensor, "b c"]:
        """Return scores of features."""
        return torch.addmm(self.bias, rows, self.weight)
