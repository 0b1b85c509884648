"""Dark experience replay, DER and DER++: regresses exemplars to the outputs stored with them.

    loss = CE(new images) + alpha mean_i mean_k ( m o_k(x_i) - m o*_ik )^2 + beta CE(exemplars)      i: exemplars
    CE over the classes with images now (`classes=seen`: all seen so far)
    o_k  = <z, e_k>, or <z, w_k> + b_k / scale with a linear head; z itself with method.target=feature
    e_k of the caption "a photo of a {}.", also where the CE draws templates (train.captions=random)

o* are taken from un-augmented exemplars when their task ends and never again, over the classes seen by then: later
columns are not compared. beta = 0 is DER, above 0 DER++. m = 1 / tau would be the authors' logits; with CLIP's scale of
100 their distance dwarfs the CE, so m (`mse_scale`) is 10. Each mean is over the images of its kind in the batch, which
is drawn uniformly from the task and the memory; the authors draw as many exemplars as new images, and twice that for
DER++. They store outputs during training. Not der_expand (Yan et al. 2021), which is also called DER.

    Parameters  none; a linear head with method.head=linear
    State       for each exemplar a number (fp32) per class seen, or the feature
    Passes      1 of the image tower; 1 of the text tower for each class seen, 2 with train.captions=random, none
                with a linear head
    Exemplars   exemplars have a loss of their own; without any it is finetune

Paper: https://arxiv.org/abs/2004.07211
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.losses.distill import known_outputs
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Phase, Prompts, Task, to_device
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.shared.classify import ClassesConfig, Classify, HeadConfig
from everclip.methods.shared.distilling import captions
from everclip.methods.shared.head import columns
from everclip.methods.shared.represent import feature_width


class DarkEr(Classify):
    """Cross-entropy, and exemplars held to their stored outputs."""

    class Config(ClassesConfig, HeadConfig):
        search: ClassVar = {"alpha": (0.1, 0.3, 1.0), "beta": (0.0, 0.5, 1.0)}

        alpha: float = Field(default=0.3, ge=0, description="weight of the distance to stored outputs")
        beta: float = Field(
            default=0.5, ge=0, description="weight of the exemplars' cross-entropy; 0: DER, else DER++"
        )
        target: Literal["logits", "feature"] = Field(
            default="logits", description="what to store: cosines to the classes, or the image feature"
        )
        mse_scale: float = Field(default=10.0, gt=0, description="factor on both outputs in the distance")

    config: Config
    passes = Passes(text="seen")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.stored: list[SampleTable] = []
        self._compared: list[int] = []

    def grow(self, clip: Clip, task: Task) -> None:
        """Make a table of the task's outputs, with a column per class seen, or per entry of a feature."""
        super().grow(clip, task)
        width = feature_width(clip) if self.config.target == "feature" else len(self.seen)
        self.stored.append(SampleTable(width))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Settle the classes that the softmax compares; stored outputs are of all classes seen."""
        super().begin_task(clip, task, train)
        self._compared = self._labels
        if np.isin(train.ids, task.train.ids, invert=True).any():
            self._labels = list(self.seen)

    def tables(self) -> dict[str, SampleTable]:
        return {f"task {index}": table for index, table in enumerate(self.stored)}

    def drop(self, ids: NDArray[Any]) -> None:
        for table in self.stored:
            table.drop(ids)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = super().encode(clip, batch, phase)
        if "classes" in features and self.prompts.captions != "fixed" and self.config.target == "logits":
            # outputs of two steps can only be compared by the same captions
            features["plain"] = clip.encode_text(captions(self.prompts.names[k] for k in self._labels))
        return features

    def _outputs(self, features: Mapping[str, Tensor]) -> Float[Tensor, "b k"]:
        if self.config.target == "feature":
            return features["image"]
        if "plain" in features:
            features = {**features, "classes": features["plain"]}
        return self.logits(features) / features["scale"]

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        logits = self.logits(features)
        rows = columns(self._labels, torch.tensor(self._compared)).tolist()
        compared, target = logits[:, rows], columns(self._compared, batch.labels)
        terms = {"cross_entropy": _mean(compared, target, batch.current)}
        old = ~batch.current
        if self.config.beta and old.any():
            terms["replay"] = self.config.beta * _mean(compared, target, old)
        distances: list[Tensor] = []
        for table in self.stored:
            values, seen = table.get(batch.ids)
            if seen.any():
                now = self._outputs(features)[seen.to(logits.device)]
                distances.append(known_outputs(now, values[seen].to(now), self.config.mse_scale))
        if self.config.alpha and distances:
            terms["dark"] = self.config.alpha * torch.cat(distances).mean()
        return terms

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Store outputs of the exemplars that have none yet."""
        self._labels = list(self.seen)
        for batch in memory:
            known = torch.stack([table.get(batch.ids)[1] for table in self.stored]).any(0)
            if not known.all():
                features = self.encode(clip, to_device(batch, clip.device), Phase())
                self.stored[-1].set(batch.ids[~known], self._outputs(features).cpu()[~known])


def _mean(logits: Float[Tensor, "b c"], target: Tensor, which: Bool[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of some images of a batch; 0 if there are none."""
    total = functional.cross_entropy(logits[which], target[which], reduction="sum")
    return total / which.sum().clamp(min=1)
