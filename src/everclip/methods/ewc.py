"""Elastic weight consolidation: penalises changes of parameters that mattered for earlier tasks.

    loss = CE + (lambda / 2) sum_p F_p (theta_p - theta*_p)^2        from the second task on

theta* are the parameters after the previous task, F the diagonal of the Fisher information of p(y | x) over all classes
seen, taken from the task's images when it ends:

    batch       mean over batches of (gradient of the batch's mean CE)^2, as PyCIL does
    empirical   mean over images of (gradient of log p(y_i | x_i))^2
    true        the same with labels drawn from the model

and merged into that of earlier tasks:

    merged      F <- a F + (1 - a) F_new,  a = known classes / all classes (PyCIL), a class counted in each of its tasks
    online      F <- decay F + F_new (Schwarz et al. 2018)

Both towers and the logit scale are held near their old values, or with a linear head the image tower and the head's old
rows, as far as they train; under tune=lora, the weights with their updates. Published without a memory:
memory.budget=0, with the CE over the new task's classes alone, as in PyCIL; method.classes=seen has all classes.
mammoth's lambda is half of ours.

    Parameters  none; a linear head with method.head=linear
    State       two copies (fp32) of what it trains: anchors and Fisher
    Passes      1 of the image tower; 1 of the text tower for each class seen, none with a linear head; the Fisher
                takes 1 more per image after the task, one by one unless method.fisher=batch
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/1612.00796
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.losses import elastic
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Phase, Prompts, Task, to_device
from everclip.methods.shared import fisher as _fisher
from everclip.methods.shared.classify import Classify, HeadConfig, LabelsConfig
from everclip.methods.shared.head import columns
from everclip.methods.shared.weights import Kept, tower_weights, value

_HEAD = "head of the method: "
FISHER, ANCHOR = "fisher ", "anchor "


class Ewc(Kept, Classify):
    """Cross-entropy with a quadratic penalty on the parameters."""

    class Config(LabelsConfig, HeadConfig):
        search: ClassVar = {"strength": (1e3, 1e5, 1e7)}
        search_first: ClassVar = ("strength",)

        strength: float = Field(
            default=1e7,
            ge=0,
            description="lambda: weight of the penalty",
            json_schema_extra={"before": 1000.0},
        )
        fisher: Literal["batch", "empirical", "true"] = Field(
            default="batch",
            description="Fisher estimate from squared gradients of batches; of images with their labels; or"
            " of images with labels drawn from the model",
        )
        fisher_images: int | None = Field(
            default=None, ge=1, description="images per task for the estimate; none: all"
        )
        fisher_max: float | None = Field(
            default=1e-4, gt=0, description="largest entry of a task's Fisher; none: no limit"
        )
        merge: Literal["merged", "online"] = Field(
            default="merged",
            description="how the Fishers of tasks are combined: mean over the classes of all tasks, or decaying sum",
        )
        decay: float = Field(default=1.0, ge=0, le=1, description="decay of the old Fisher with merge=online")

        @field_validator("fisher", mode="before")
        @classmethod
        def _word(cls, value: object) -> object:
            """Return ``true`` as a word, since the command line reads a bare ``true`` as a truth value."""
            return "true" if value is True else value

    config: Config
    capabilities = Capabilities(shards=False)
    passes = Passes(text="seen", after=(1.0, 0.0), anchored=2)

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self._names: list[str] = []
        self._counts = [0]

    def grow(self, clip: Clip, task: Task) -> None:
        super().grow(clip, task)
        self._counts.append(self._counts[-1] + len(task.classes))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self.kept_to(clip)
        self._names = []

    def after_step(self, clip: Clip) -> None:
        """Note once per task what trains."""
        if not self._names:
            heads = [name for name, p in self.head.named_parameters() if p.requires_grad and p.numel()]
            self._names = [*tower_weights(clip, trained=True), *(_HEAD + name for name in heads)]

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"names": self._names}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self._names = list(state["names"])

    def _values(self, clip: Clip, names: Iterable[str]) -> dict[str, Tensor]:
        heads = {_HEAD + name: parameter for name, parameter in self.head.named_parameters()}
        return {name: heads[name] if name in heads else value(clip, name) for name in names}

    def penalty(self, clip: Clip) -> dict[str, Tensor]:
        if not self.kept:
            return {}
        anchors = self.part(ANCHOR)
        distance = elastic.penalty(self._values(clip, anchors), anchors, self.part(FISHER))
        return {"ewc": self.config.strength / 2 * distance}

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Merge the task's Fisher into that of earlier ones, and take the parameters as anchors."""
        values, before = self._values(clip, self._names), self.part(FISHER)
        fresh = _fisher.diagonal(self._losses(clip, task, new), values, self.config.fisher_max)
        share = self._counts[-2] / self._counts[-1]
        keep, take = (share, 1 - share) if self.config.merge == "merged" else (self.config.decay, 1.0)
        for name, current in values.items():
            fisher = fresh[name]
            if name in before:
                fisher = elastic.merge(before[name], fisher, keep, take)
            self.kept[FISHER + name] = fisher
            self.kept[ANCHOR + name] = current.detach().clone()

    def _losses(self, clip: Clip, task: Task, new: Iterable[Batch]) -> Iterator[Tensor]:
        """Yield -log p(y | x) over all classes seen, the mean of a batch or of one image."""
        self._labels, kind = list(self.seen), self.config.fisher
        for part in _fisher.parts(new, task, self.config.fisher_images, kind != "batch"):
            part = to_device(part, clip.device)
            logits = self.logits(self.encode(clip, part, Phase()))
            target = _fisher.drawn(logits, part) if kind == "true" else columns(self._labels, part.labels)
            yield functional.cross_entropy(logits, target)
