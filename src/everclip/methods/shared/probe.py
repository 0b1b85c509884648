"""Train methods in two stages: represent trains the image tower, probe a linear layer on its features."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Images, Method, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.head import Head, HeadClassifier, HeadInit, columns, first_rows, initial_rows

PROBE = "probe"
"""Name of the second phase."""
FALL, ENOUGH, MOST = 0.01, 1e-3, 50
"""A loss has stopped falling if ten iterations lower it by less than the fraction ``FALL``, or it is below ``ENOUGH``;
at most ``MOST`` times ten iterations."""
CHUNK = 8192
"""Images whose scores are computed at once."""


class ProbeConfig(MethodConfig):
    """Options of the linear probe."""

    probe_epochs: int | None = Field(
        default=None,
        ge=1,
        description="epochs of the linear probe after each task, through the tower on class-balanced"
        " batches; none: one pass, then training on the kept features until the loss stops falling",
        json_schema_extra={"before": 5},
    )
    probe_lr: float = Field(
        default=1e-3, gt=0, description="peak learning rate of the probe with probe_epochs"
    )
    probe_penalty: float = Field(
        default=0.1,
        ge=0,
        description="L2 penalty on the probe's weights if probe_epochs is none: 1 / C of a logistic"
        " regression on unit-length features",
        json_schema_extra={"before": 0.0},
    )
    few: Literal["again", "once"] = Field(
        default="again",
        description="with probe_epochs, repeat a class with too few images for a batch (again) or not (once)",
        json_schema_extra={"before": "once"},
    )
    probe_start: Literal["fresh", "kept"] = Field(
        default="fresh",
        description="after a task, start the probe's rows of classes with images anew, or keep them",
    )
    head_init: HeadInit = initial_rows()


class Probe(Method):
    """Base of methods whose loss learns features and no classifier.

    The probe sees the images that the method may keep at hand, with classes weighted equally, through the frozen tower,
    without weight decay. Its softmax runs over the classes that have images; rows of other classes stay as they are.
    """

    probes: bool = True
    """Whether the probe classifies; set on the instance where an option decides."""

    views: ClassVar[Literal[1, 2]] = 1
    """Augmented views of an image in the first phase."""
    represent_data: ClassVar[Literal["mixed", "new"]] = "mixed"
    """Images of the first phase."""

    def __init__(self, config: ProbeConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.can(fits="end" if config.probe_epochs is None else "phase")
        self.head = Head()
        self.probe_data: Literal["mixed", "new"] = "mixed"
        self._labels: list[int] = []

    @abstractmethod
    def represent(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        """Return ``encode`` of the first phase."""

    @abstractmethod
    def contrast(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` of the first phase."""

    def learners(self, clip: Clip) -> Iterator[nn.Parameter]:
        """Yield ``trainable`` of the first phase."""
        yield from (parameter for _, parameter in clip.image_parameters())

    def phases(self, task: Task) -> list[Phase]:
        represent = Phase("represent", data=self.represent_data, views=self.views)
        if self.options.probe_epochs is None or not self.probes:
            return [represent]
        rates = {"lr_head": self.options.probe_lr, "weight_decay": 0.0}
        sampler = "class_balanced" if self.options.few == "once" else "class_repeated"
        return [represent, Phase(PROBE, self.options.probe_epochs, sampler, self.probe_data, train=rates)]

    def grow(self, clip: Clip, task: Task) -> None:
        self.head.grow_for(task, clip, self.prompts, self.options.head_init)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Note the classes that the probe will meet, and reset their rows if it has a phase."""
        met = train.labels
        if self.probe_data == "new":
            met = met[np.isin(train.ids, task.train.ids)]
        self._labels = _among(self.head, met)
        if self.options.probe_epochs is not None:
            self._start(clip, self._labels)

    @torch.no_grad()
    def _start(self, clip: Clip, labels: list[int]) -> None:
        """Reset the rows of these classes, unless they are to be kept."""
        if self.options.probe_start == "fresh":
            rows = self.head.columns(torch.tensor(labels)).tolist()
            self.head.weight[rows] = first_rows(labels, clip, self.prompts, self.options.head_init)
            self.head.bias[rows] = 0

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Learn the probe on kept features, unless it has had a phase."""
        if self.options.probe_epochs is not None or not self.probes:
            return
        kept = memory if self.probe_data == "mixed" else ()
        features, labels = features_once(clip.encode_image, task, new, kept)
        self._start(clip, _among(self.head, labels))  # the memory may just have lost classes: their rows stay
        relearn(self.head, features, labels, clip.logit_scale.exp().detach(), self.options.probe_penalty)

    @final
    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.head.parameters() if phase.name == PROBE else self.learners(clip)

    @final
    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name != PROBE:
            return self.represent(clip, batch, phase)
        with torch.no_grad():
            return {"image": clip.encode_image(batch.images), "scale": clip.logit_scale.exp()}

    @final
    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name != PROBE:
            return self.contrast(features, batch)
        rows = self.head.columns(torch.tensor(self._labels)).tolist()
        logits = self.head(features["image"], features["scale"])[:, rows]
        return {PROBE: functional.cross_entropy(logits, columns(self._labels, batch.labels))}

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        return HeadClassifier(clip.encode_image, self.head, labels, clip.logit_scale.exp())


@torch.no_grad()
def features_once(
    encode: Callable[[Images], Tensor], task: Task, new: Iterable[Batch], memory: Iterable[Batch]
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Return features and labels of a task's images and of exemplars, which count once if they are from the task."""
    known = torch.as_tensor(task.train.ids)
    met: list[tuple[Tensor, Tensor]] = []
    for batch in new:
        features = encode(batch.images)
        met.append((features, batch.labels.to(features.device)))
    for batch in memory:
        features = encode(batch.images)
        fresh = ~torch.isin(batch.ids.cpu(), known).to(features.device)
        met.append((features[fresh], batch.labels.to(features.device)[fresh]))
    features, labels = (torch.cat(column) for column in zip(*met, strict=True))
    return features, labels


def _among(head: Head, labels: Tensor | NDArray[Any]) -> list[int]:
    """Return a head's labels that are among those of some images, in the head's order."""
    there = set(labels.tolist())
    return [label for label in head.labels if label in there]


def relearn(
    head: Head, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], scale: Tensor, penalty: float
) -> None:
    """Learn a head's rows of the classes that have images, from their present values, until the loss stops falling."""
    wanted = _among(head, labels)
    rows = head.columns(torch.tensor(wanted)).tolist()
    weight, bias = scale * head.weight.detach()[rows], head.bias.detach()[rows]
    weight, bias = converged(features, columns(wanted, labels), weight, bias, penalty)
    with torch.no_grad():
        head.weight[rows] = weight / scale
        head.bias[rows] = bias


def converged(
    features: Float[Tensor, "n d"],
    target: Int64[Tensor, " n"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"],
    penalty: float,
) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
    """Return a linear classifier, learned from these values by L-BFGS on all images until its loss stops falling.

    The loss is the mean cross-entropy, with all classes weighted equally, plus penalty / (2 n) times the sum of the
    squared weights, as in a logistic regression with C = 1 / penalty. It has stopped when ten iterations lower it by
    less than the fraction ``FALL``, or when almost none is left: without a penalty it falls for ever if the classes can
    be separated.
    """
    weight, bias = (part.detach().clone().requires_grad_() for part in (weight, bias))
    counts = target.bincount(minlength=len(weight))
    share = 1 / (counts[target] * (counts > 0).sum())
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=10, line_search_fn="strong_wolfe")
    loss = torch.zeros(())

    def closure() -> Tensor:
        nonlocal loss
        optimizer.zero_grad()
        loss = torch.zeros((), device=features.device)
        for part in torch.arange(len(target), device=target.device).split(CHUNK):
            logits = features[part] @ weight.T + bias
            term = (share[part] * functional.cross_entropy(logits, target[part], reduction="none")).sum()
            term.backward()
            loss = loss + term.detach()
        shrink = penalty / (2 * len(target)) * weight.square().sum()
        shrink.backward()
        return loss + shrink.detach()

    before = math.inf
    with torch.enable_grad():
        for _ in range(MOST):
            now = float(optimizer.step(closure))  # the loss before these ten
            if now < ENOUGH or before - now < FALL * before:
                break
            before = now
    return weight.detach(), bias.detach()
