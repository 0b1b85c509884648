"""Interpolates the weights before and after learning, around any other method: WiSE-FT, patching.

    theta = (1 - alpha) theta_anchor + alpha theta_t        for each weight and float buffer of the model

    zero_shot   theta_anchor is the pretrained model. Predictions come from theta; training continues from theta_t
    previous    theta_anchor is the model at the task's start. theta takes the place of theta_t (patching)
    mean        the same with alpha = 1 / t, the mean of the models after tasks 1..t

The other method is method.loss, its options are method.options.NAME=VALUE. What it adds to the model, such as a linear
head, is not mixed. A checkpoint's open_clip folder holds the weights that training continues from. zscl, which itself
averages weights at a task's end, allows anchor=zero_shot only. Losses that fit what they predict with to the trained
towers (class means, probes, closed forms with adapt) need anchor=previous or mean, where they do so on theta, at the
task's end. alpha = 0 and 1 give the end points bit for bit.

    Parameters  those of the loss
    State       that of the loss; with anchor=zero_shot a copy of the pretrained model, else one during a task
    Passes      those of the loss
    Exemplars   as the loss does

Paper: https://arxiv.org/abs/2109.01903, patching https://arxiv.org/abs/2208.05592
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.errors import UserError
from everclip.methods.base.method import Batch, Clip, Images, Method, MethodConfig, Prompts, Task, Untrained
from everclip.methods.base.registry import method_class, options_of
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.shared.weights import blend, weights


class WiseFt(Untrained):
    """Another method, ``inner``, whose weights are averaged with earlier ones; ``inner`` does everything else."""

    class Config(MethodConfig):
        search: ClassVar = {"alpha": (0.3, 0.5, 0.7, 0.9)}

        wraps: ClassVar = ("loss", "options")
        loss: str = Field(default="finetune", description="the method that learns")
        options: dict[str, int | float | bool | str] = Field(default={}, description="options of loss")
        alpha: float = Field(default=0.5, ge=0, le=1, description="fraction of the learned weights")
        anchor: Literal["zero_shot", "previous", "mean"] = Field(
            default="zero_shot",
            description="average with the pretrained model, for predictions only; with the model before the"
            " task; or with the latter at alpha = 1 / t, the mean over tasks",
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        if config.loss in ("joint", "wise_ft"):
            raise UserError(
                f'method.loss="{config.loss}" wraps a method itself: use one of finetune, clip, gcl, gdro'
            )
        if config.loss == "zscl" and config.anchor != "zero_shot":
            raise UserError(
                f'method.anchor="{config.anchor}" but zscl averages the weights of a task itself:'
                " use method.anchor=zero_shot"
            )
        options = options_of(config.loss, config.options, "method.options.")
        super().__init__(config, prompts)
        self.inner = method_class(config.loss).create(options, prompts)
        _refuse_misfit(config, self.inner.capabilities.fits)
        self.capabilities, self.passes = self.inner.capabilities, self.inner.passes
        self.pretrained: nn.Module | None = None
        self._before: dict[str, Tensor] = {}

    @property
    def seeded(self) -> bool:
        return self.inner.seeded

    def learner(self, task: Task) -> Method:
        return self.inner.learner(task)

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        return self.inner.features(clip, images)

    def scores(self, clip: Clip, batches: Iterable[Batch]) -> dict[int, float]:
        return self.inner.scores(clip, batches)

    def tables(self) -> dict[str, SampleTable]:
        return self.inner.tables()

    def drop(self, ids: NDArray[Any]) -> None:
        self.inner.drop(ids)

    def get_extra_state(self) -> dict[str, Any]:
        """Return nothing: ``inner`` has its own."""
        return {}

    def set_extra_state(self, state: Any) -> None:
        """Restore nothing."""

    def grow(self, clip: Clip, task: Task) -> None:
        """Keep the pretrained model before the first task."""
        if self.config.anchor == "zero_shot" and self.pretrained is None:
            self.pretrained = copy.deepcopy(clip.model).requires_grad_(False)
        self.inner.grow(clip, task)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        if self.config.anchor != "zero_shot":
            self._before = weights(clip)
        self.inner.begin_task(clip, task, train)

    def trains_on(self, images: ImageSet) -> NDArray[np.bool_]:
        return self.inner.trains_on(images)

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Mix, if training goes on from the mixture; then the other method ends its task with the final weights."""
        if self._before:
            share = self.config.alpha if self.config.anchor == "previous" else 1 / (task.index + 1)
            clip.model.load_state_dict(blend(self._before, weights(clip), share))
            self._before = {}
        self.inner.end_task(clip, task, new, memory)

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        return self.inner.classifier(self._mixed(clip), labels)

    def encoder(self, clip: Clip) -> Clip:
        return self.inner.encoder(self._mixed(clip))

    def _mixed(self, clip: Clip) -> Clip:
        """Return the model that predictions come from."""
        if self.pretrained is None:
            return clip
        mixed = copy.deepcopy(clip)
        before = self.pretrained.state_dict()
        mixed.model.load_state_dict(blend(before, clip.model.state_dict(), self.config.alpha))
        return mixed

    def state_bytes(self) -> int:
        kept = {} if self.pretrained is None else self.pretrained.state_dict()
        return self.inner.state_bytes() + sum(tensor.nbytes for tensor in kept.values())


def _refuse_misfit(config: WiseFt.Config, fits: str) -> None:
    """Refuse a loss whose classifier would meet other features than it was fitted to. Raises UserError."""
    loss = f'method.loss="{config.loss}" with these options fits what it predicts with'
    if fits == "phase":
        raise UserError(
            f"{loss} in a phase, before the weights are averaged: use options with which it does so at the"
            " task's end, such as method.options.probe_epochs=none or method.options.retrain_penalty=10"
        )
    if fits == "end" and config.anchor == "zero_shot":
        raise UserError(
            f'{loss} to the learned weights, but method.anchor="zero_shot" predicts with the average: use'
            " method.anchor=previous or method.anchor=mean"
        )
