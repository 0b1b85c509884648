"""Define what a training step sees (Batch), and what a method asks of a stage of its training (Phase)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from everclip.distributed import collectives
from everclip.seeding import generator


@dataclass(frozen=True, eq=False)
class Batch:
    """The images that a training step sees.

    Args:
        images: uint8 pictures ``[b, 3, s, s]``, or in their place activations ``[b, ...]`` of the tower's frozen part;
            ``Clip.normalise`` takes both.
        labels, domains, ids: int64 ``[b]``, as in ImageSet.
        current: bool ``[b]``: from the current task rather than from the memory.
        second: another augmented view of each image, in phases with two views.
        key: (stage, phase, epoch, step), for random draws that must repeat exactly.
        seed: the run's seed of such draws.
        number: how many batches of the phase come before it.
        texts: a caption of each image, for data with captions; ``which`` int64 ``[b]`` is equal where the texts are,
            and ``pairs`` int64 ``[b]`` are stable ids of (image, caption).
        share: how several processes share it: pictures are then only those of this process's images, ``[own, ...]``,
            and everything else is the whole batch's.
    """

    images: UInt8[Tensor, "own 3 s s"] | Float[Tensor, "own ..."]
    labels: Int64[Tensor, " b"]
    domains: Int64[Tensor, " b"]
    ids: Int64[Tensor, " b"]
    current: Bool[Tensor, " b"]
    second: UInt8[Tensor, "own 3 s s"] | Float[Tensor, "own ..."] | None = None
    key: tuple[int, int, int, int] = (0, 0, 0, 0)
    seed: int = 0
    number: int = 0
    share: collectives.Share | None = None
    texts: Sequence[str] | None = None
    which: Int64[Tensor, " b"] | None = None
    pairs: Int64[Tensor, " b"] | None = None

    @property
    def said(self) -> Int64[Tensor, " b"]:
        """The text of each image as a number: that of its caption, else of its class."""
        return self.labels if self.which is None else self.which

    @property
    def samples(self) -> Int64[Tensor, " b"]:
        """Stable ids of the pairs, by which estimators are kept: (image, caption), else the image's."""
        return self.ids if self.pairs is None else self.pairs

    def __len__(self) -> int:
        return len(self.labels)

    def rng(self, stream: str) -> np.random.Generator:
        """Return the generator of one stream at this step."""
        return generator(self.seed, stream, *self.key)


@dataclass(frozen=True)
class Phase:
    """A training stage of a method.

    Args:
        name: shown in the log.
        epochs: overrides ``train.epochs``; None takes the config's epochs or steps.
        sampler: ``uniform`` over images, or ``class_balanced``: classes uniformly, then images of the class, no image
            twice in a batch; with ``class_repeated`` equally many of each class, repeated where it has too few.
        data: which images it trains on: new and memory, new alone, or memory alone.
        views: augmented views of each image: one, or two (``Batch.second``).
        train: values of ``[train]`` for this phase alone, such as ``{"lr_head": 0.1, "weight_decay": 0.0}``.
        steps: number of its optimizer steps; the loop fills it in, for ``begin_phase`` and after.
    """

    name: str = "train"
    epochs: int | None = None
    sampler: Literal["uniform", "class_balanced", "class_repeated"] = "uniform"
    data: Literal["mixed", "new", "memory"] = "mixed"
    views: Literal[1, 2] = 1
    train: Mapping[str, float | None] = field(default_factory=dict)
    steps: int = 0
