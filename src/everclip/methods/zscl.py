"""Zero-shot continual learning: distils the pretrained model's answers on reference images and texts.

    loss = CE + w_I T^2 KD_T( S* -> S ) + w_T T^2 KD_T( S*^T -> S^T ) + l2 sum_p (theta_p - theta0_p)^2
    S = s z E*^T,  S* = s z* E*^T,   KD_T(p -> q) = mean over rows of - sum softmax(p / T) log softmax(q / T)

Stars mark the pretrained model, in every task; z are features of reference images and E* embeddings of reference texts,
so the distillation trains the image tower; theta0 are the weights at the task's start. At a task's end the weights
become the average of those at its start and after every `ensemble_every` of its steps. The authors take one every 100
of their 1,000 steps: here after every tenth of a task's steps, as a task may have only 18. That the last step always
counts is ours.

Reference images are emoji pictures that come with the package (never those that a run on emoji learns or tests), the
batch's images, or its exemplars; texts the class names of ImageNet, prompts of old classes, or random sentences. The
authors use ImageNet's images or captioned ones from the web. CE over the classes with images now, smoothed labels, a
fixed logit scale, w_I = w_T = 1 (5 in their class-incremental runs). Published without a memory: memory.budget=0.

    Parameters  none
    State       the pretrained model's features (fp32) of reference texts and emoji pictures; its image tower with
                other reference images; in a task two more copies of the weights
    Passes      2 of the image tower, the second of a reference image (without gradient where that is the batch's
                own); 1 of the text tower for each class with images now
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/2303.06628
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Phase, Prompts, Task
from everclip.methods.shared import distilling
from everclip.methods.shared.distilling import Distilling, DistillingConfig
from everclip.methods.shared.weights import Average, Kept, tower_weights, value


class Zscl(Kept, Distilling):
    """Distillation from the pretrained model, and averaged weights."""

    class Config(DistillingConfig):
        search: ClassVar = {
            "image_weight": (0.3, 1.0, 5.0),
            "text_weight": (0.3, 1.0, 5.0),
            "l2": (0.0, 1.0, 10.0),
        }

        image_weight: float = Field(
            default=1.0, ge=0, description="weight of each image's distribution over texts"
        )
        text_weight: float = Field(
            default=1.0, ge=0, description="weight of each text's distribution over images"
        )
        l2: float = Field(
            default=1.0, ge=0, description="weight of the squared distance to the weights at the task's start"
        )
        ensemble_every: float | None = Field(
            default=0.1,
            gt=0,
            description="steps between the weights that are averaged; below 1: fraction of the task's steps; none: no"
            " average",
            json_schema_extra={"before": 100},
        )
        reference_images: Literal["emoji", "current", "memory"] = Field(
            default="emoji",
            description="reference images: emoji pictures of the package, the batch's images, or its exemplars",
        )
        reference_texts: Literal["imagenet", "old", "random"] = Field(
            default="imagenet",
            description="reference texts: ImageNet's class names, prompts of old classes, or random sentences",
        )
        emoji_count: int = Field(default=600, ge=1, description="largest number of emoji pictures")

    capabilities = Capabilities(shares=False, pairs=True)
    config: Config
    passes = Passes(lambda stage: (2.0, 0.0), "seen")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(pairs=config.reference_texts != "old")  # those are prompts of classes
        self.teacher: nn.Module | None = None
        self._old: list[int] = []
        self._pictures: Tensor | None = None
        self._start: dict[str, Tensor] = {}
        self._average = Average({})
        self._steps = 0
        self._every = 1

    def grow(self, clip: Clip, task: Task) -> None:
        """Copy the pretrained tower before the first task, unless keeping its features of the pictures is enough."""
        if not self.seen and self.config.reference_images != "emoji":
            self.teacher = clip.copy_tower()
        self._old = list(self.seen)
        super().grow(clip, task)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self.kept_to(clip)
        if self.config.reference_images == "emoji" and self._pictures is None:
            self._pictures = distilling.pictures(clip, train.store.keys, self.config.emoji_count)
        if not self._old:
            self._ask(clip)
        texts = self.kept["texts"]
        self._texts = texts[self._old] if self.config.reference_texts == "old" else texts
        self._start = {name: value(clip, name).detach().clone() for name in tower_weights(clip)}
        self._average = Average(self._start)
        self._steps = 0

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Set the number of steps between two weights of the average."""
        every = self.config.ensemble_every or 1
        self._every = max(1, round(every if every >= 1 else every * phase.steps))

    @torch.no_grad()
    def _ask(self, clip: Clip) -> None:
        """Keep the features of the pretrained model, which later tasks cannot compute."""
        named = {"imagenet": distilling.imagenet, "random": distilling.sentences}
        kind = self.config.reference_texts
        # Of old classes too: every row is taken now, but used only once its class is old.
        texts = distilling.captions(self.prompts.names) if kind == "old" else named[kind]()
        self.kept["texts"] = clip.encode_text(texts)
        if self._pictures is not None:
            parts = [clip.encode_image(part) for part in self._pictures.split(64)]
            self.kept["images"] = torch.cat(parts)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = super().encode(clip, batch, phase)
        if self._pictures is not None:
            order = batch.rng("reference").permutation(len(self._pictures))
            rows = torch.from_numpy(order[: len(batch)])
            features["reference"] = clip.encode_image(self._pictures[rows])
            features["teacher"] = self.kept["images"][rows.to(clip.device)]
            return features
        rows = torch.ones_like(batch.current) if self.config.reference_images == "current" else ~batch.current
        if rows.any():
            features["reference"] = features["image"][rows]
            with torch.no_grad():
                images = clip.normalise(batch.images[rows.cpu()])
                features["teacher"] = clip.encode_image(images, self.teacher)
        return features

    def penalty(self, clip: Clip) -> dict[str, Tensor]:
        if not self.config.l2:
            return {}
        current = {name: value(clip, name) for name in self._start}
        moved = [((now - self._start[name]) ** 2).sum() for name, now in current.items() if now.requires_grad]
        return {"anchor": self.config.l2 * torch.stack(moved).sum()}

    def after_step(self, clip: Clip) -> None:
        self._steps += 1
        if self.config.ensemble_every and self._steps % self._every == 0:
            self._average.take(clip)

    def get_extra_state(self) -> dict[str, Any]:
        average = {"values": self._average.values, "count": self._average.count}
        return super().get_extra_state() | {"steps": self._steps, "average": average}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self._steps = state["steps"]
        self._average.load(state["average"])

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Put the average in place of the weights."""
        if self.config.ensemble_every:
            if self._steps % self._every:
                self._average.take(clip)
            self._average.put(clip)
        self._start, self._average = {}, Average({})
