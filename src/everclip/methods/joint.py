"""Joint training: all tasks at once, a reference for continual learning.

One task with the images and classes of all of them, learned with any of the losses: `method=joint method.loss=gcl`, its
options as `method.options.NAME=VALUE`. Its results hold one stage: last equals average, forgetting and transfers are
null. It trains once where others train at each task, so its default is 15 epochs; fewer leave it under-trained. It is a
reference, and a method can end above it.

    Parameters  those of the loss
    State       that of the loss
    Passes      1 of the image tower; 1 of the text tower for each class of the batch
    Exemplars   none: it has all images

One curve of the ImageNet experiment in https://arxiv.org/abs/2605.03866, section 4.4.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from everclip.errors import UserError
from everclip.methods.base.method import Method, MethodConfig, Prompts
from everclip.methods.base.registry import method_class, options_of


class Joint(Method):
    """Another method, on all tasks at once."""

    class Config(MethodConfig):
        search: ClassVar = {"loss": ("finetune", "clip", "gcl", "gdro")}
        recommends: ClassVar = {"epochs": 15}
        recommended_before: ClassVar = {}

        wraps: ClassVar = ("loss", "options")
        loss: str = Field(default="finetune", description="the method whose loss is used")
        options: dict[str, int | float | bool | str] = Field(default={}, description="options of loss")

    @classmethod
    def create(cls, config: MethodConfig, prompts: Prompts) -> Method:
        """Return the method ``loss``, which takes all tasks as one. Raises UserError for joint and for bad options."""
        assert isinstance(config, cls.Config)
        if config.loss == "joint":
            raise UserError('method.loss="joint" names itself: use one of finetune, clip, gcl, gdro')
        options = options_of(config.loss, config.options, "method.options.")
        method = method_class(config.loss).create(options, prompts)
        method.can(one_task=True)
        return method
