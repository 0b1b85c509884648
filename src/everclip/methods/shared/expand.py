"""Expand a model for der_expand and memo: one more extractor per task, and a head on the features of all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.config import MethodConfig
from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Capabilities, Clip, Images, Method, Phase, Prompts, Task
from everclip.methods.shared.head import Head, HeadClassifier, HeadInit, columns, first_rows, initial_rows
from everclip.methods.shared.probe import features_once, relearn


class ExpandConfig(MethodConfig):
    """Options of both methods."""

    search_only: ClassVar = {"retrain_penalty": ("balance", "retrain")}

    aux_weight: float = Field(
        default=1.0, ge=0, description="weight of the loss on the newest extractor alone"
    )
    head_init: HeadInit = initial_rows()
    balance: Literal["align", "retrain", "none"] = Field(
        default="retrain",
        description="how to correct the bias towards new classes after a task: learn the head anew, with equal"
        " weight per class, if some are new and all have images (retrain); scale new rows to the mean length of"
        " the old ones (align); or not at all",
        json_schema_extra={"before": "align"},
    )
    retrain_penalty: float | None = Field(
        default=10.0,
        ge=0,
        description="L2 penalty on the head's weights with balance=retrain, fitted to each image's features until"
        " the loss stops falling; none: learn by steps through the towers, for retrain_epochs",
        json_schema_extra={"before": None},
    )
    retrain_epochs: int | None = Field(
        default=None, ge=1, description="epochs with retrain_penalty=none; none: as in training"
    )
    few: Literal["again", "once"] = Field(
        default="again",
        description="with retrain_penalty=none, repeat a class with too few images for a batch (again) or"
        " not (once)",
        json_schema_extra={"before": "once"},
    )
    retrain_temperature: float = Field(
        default=5.0, gt=0, description="divisor of the scores with retrain_penalty=none"
    )


class Expand(Method):
    """Cross-entropy on the features of one extractor per task; all but the newest are frozen.

    The newest extractor is always the model's own image tower; ``older`` holds what earlier tasks had of their own.
    """

    capabilities = Capabilities(memory_policy="herding", needs_exemplars=True)

    def __init__(self, config: ExpandConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        if config.balance == "retrain":
            self.can(fits="phase" if config.retrain_penalty is None else "end")
        self.older = nn.ModuleList()
        self.head, self.aux = Head(), Head()
        self._known: list[int] = []
        self._new: list[int] = []
        self._complete = False

    @abstractmethod
    def own_part(self, clip: Clip) -> nn.Module:
        """Return a frozen copy of what the finished task has of its own."""

    @abstractmethod
    def extract(self, clip: Clip, images: Images) -> list[Float[Tensor, "n d"]]:
        """Return unit-length features of each extractor, the newest last; with gradient in what trains."""

    @abstractmethod
    def own_parameters(self, clip: Clip) -> Iterator[nn.Parameter]:
        """Yield parameters of the image tower that a task trains."""

    def grow(self, clip: Clip, task: Task) -> None:
        """Keep the finished task's part, widen the head for another one, and give new classes their rows."""
        self._known = list(self.head.labels)
        self._new = [label for label in task.classes if label not in self._known]
        init = self.options.head_init
        if self._known:
            self.older.append(self.own_part(clip))
            self.head.widen(self.head.weight.shape[1] // len(self.older), init)
        self.head.grow_for(task, clip, self.prompts, init, len(self.older) + 1)
        if self._known:
            self.aux = self._auxiliary(clip)

    def _auxiliary(self, clip: Clip) -> Head:
        """Return a head on the newest features alone, whose columns are those of ``auxiliary_target``."""
        rows = first_rows(self._new or self._known, clip, self.prompts, self.options.head_init)
        if self._new:
            old = first_rows(self._known, clip, self.prompts, self.options.head_init)
            rows = torch.cat([functional.normalize(old.mean(0, keepdim=True), dim=1), rows])
        head = Head()
        head.grow(range(len(rows)), rows)
        return head

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Check whether every class has images: a head learned anew would not know a class without."""
        self._complete = set(self.head.labels) <= set(np.unique(train.labels).tolist())

    def phases(self, task: Task) -> list[Phase]:
        if not self._anew() or self.options.retrain_penalty is not None:
            return [Phase()]
        sampler = "class_balanced" if self.options.few == "once" else "class_repeated"
        return [Phase(), Phase("retrain", self.options.retrain_epochs, sampler)]

    def _anew(self) -> bool:
        """Return whether this task ends with a head that is learned anew.

        Without new classes there is no bias towards them, and the newest images are all of one domain.
        """
        return bool(self._known and self._new) and self.options.balance == "retrain" and self._complete

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Reset the head if it is trained anew."""
        if phase.name == "retrain":
            self._start_anew(clip)

    @torch.no_grad()
    def _start_anew(self, clip: Clip) -> None:
        init, extractors = self.options.head_init, len(self.older) + 1
        self.head.weight.copy_(first_rows(self.head.labels, clip, self.prompts, init, extractors))
        self.head.bias.zero_()

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.head.parameters()
        if phase.name != "retrain":
            yield from self.own_parameters(clip)
            yield from self.aux.parameters() if self._known else ()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = self.extract(clip, batch.images)
        return {"all": torch.cat(features, 1), "newest": features[-1], "scale": clip.logit_scale.exp()}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        logits = self.head(features["all"], features["scale"])
        target = self.head.columns(batch.labels)
        if phase.name == "retrain":
            logits = logits / self.options.retrain_temperature
            return {"cross_entropy": functional.cross_entropy(logits, target)}
        terms = {"cross_entropy": functional.cross_entropy(logits, target)}
        if self._known and self.options.aux_weight:
            newest = self.aux(features["newest"], features["scale"])
            target = auxiliary_target(batch.labels, self._known, self._new)
            terms["auxiliary"] = self.options.aux_weight * functional.cross_entropy(newest, target)
        return terms

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Give old and new rows the same mean length, or learn all of them anew."""
        if self.options.balance == "align":
            self.head.align(self._new)
        elif self._anew() and self.options.retrain_penalty is not None:
            features, labels = features_once(partial(self._side_by_side, clip), task, new, memory)
            if not set(self.head.labels) <= set(labels.tolist()):
                return  # the memory, now smaller per class, has lost a class: only its row still knows it
            self._start_anew(clip)
            scale = clip.logit_scale.exp().detach()
            relearn(self.head, features, labels, scale, self.options.retrain_penalty)

    def _side_by_side(self, clip: Clip, images: Images) -> Float[Tensor, "b w"]:
        return torch.cat(self.extract(clip, images), 1)

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b w"]:
        return functional.normalize(self._side_by_side(clip, images), dim=1)

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        side_by_side = partial(self._side_by_side, clip)
        return HeadClassifier(side_by_side, self.head, labels, clip.logit_scale.exp())


def auxiliary_target(
    labels: Int64[Tensor, " b"], known: Sequence[int], new: Sequence[int]
) -> Int64[Tensor, " b"]:
    """Return 0 for a known class and 1, 2, ... for the new ones, in their order.

    Where no class is new, as with new domains, all would be 0; so return the place among the known ones instead.
    """
    return columns(new, labels) + 1 if new else columns(known, labels)
