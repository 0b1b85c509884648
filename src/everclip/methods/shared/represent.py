"""Learn representations: a projector, the previous task's model, and losses of two views."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.data.images import ImageSet
from everclip.losses import supcon
from everclip.methods.base.cost import Passes, teacher
from everclip.methods.base.method import Batch, Clip, Phase, Prompts, Task
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.shared.contrastive import valued
from everclip.methods.shared.probe import Probe, ProbeConfig


class RepresentConfig(ProbeConfig):
    """Options of the projector."""

    projection: int = Field(default=128, ge=2, description="width of the projections in the loss")
    hidden: int | None = Field(
        default=None, ge=1, description="width of the hidden layer; none: that of the features"
    )


class Represent(Probe):
    """A projector on the image features, kept from task to task, and the frozen model of the task before.

    That model is a copy made at the task's start and dropped at its end, so it is not part of the state.
    """

    def __init__(self, config: RepresentConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.projector: nn.Module = nn.Identity()
        self._teacher: tuple[nn.Module, ...] = ()  # image tower and projector

    def grow(self, clip: Clip, task: Task) -> None:
        """Make the projector at the first task; rows of the head at each."""
        if not self.head.labels:
            self.projector = self.make_projector(feature_width(clip)).to(clip.device)
        super().grow(clip, task)

    def make_projector(self, width: int) -> nn.Module:
        """Return a new projector of features of this width."""
        return mlp(width, self.options.hidden or width, self.options.projection)

    def learners(self, clip: Clip) -> Iterator[nn.Parameter]:
        yield from super().learners(clip)
        yield from self.projector.parameters()

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Freeze the model as the task before left it; the first task has none."""
        super().begin_task(clip, task, train)
        self._teacher = ()
        if task.index > 0:
            self._teacher = (clip.copy_tower(), copy.deepcopy(self.projector).requires_grad_(False))

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        super().end_task(clip, task, new, memory)
        self._teacher = ()

    def represent(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        """Return features ``[views * b, d]``, and the frozen tower's of the same pictures."""
        pictures = batch.images
        if phase.views == 2:
            assert batch.second is not None
            pictures = torch.cat([pictures, batch.second])
        images = clip.normalise(pictures)
        features = {"image": clip.encode_image(images)}
        if self._teacher:
            with torch.no_grad():
                features["teacher"] = clip.encode_image(images, self._teacher[0])
        return features

    def past(self, features: Mapping[str, Tensor]) -> Float[Tensor, "n p"] | None:
        """Return unit-length projections by the frozen model; None in the first task."""
        if "teacher" not in features:
            return None
        return normalize(self._teacher[1](features["teacher"]), dim=1)


class ViewsConfig(RepresentConfig):
    """Options of losses of two views."""

    objective: Literal["supcon", "simclr", "sogclr"] = Field(
        default="supcon",
        description="contrast classes (supcon), images (simclr), or images with moving averages (sogclr)",
    )
    tau: float = Field(default=0.1, gt=0, description="temperature of the objective")
    gamma: float = Field(default=0.9, gt=0, le=1, description="weight of the new value in sogclr's averages")


class TwoViews(Represent):
    """Base of methods that contrast two augmented views of each image."""

    views = 2
    passes = Passes(teacher(2), "none", views=2)

    def __init__(self, config: ViewsConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.estimators = SampleTable(1)

    def tables(self) -> dict[str, SampleTable]:
        return {"estimators": self.estimators}

    def drop(self, ids: NDArray[Any]) -> None:
        self.estimators.drop(ids)

    def objective(
        self, z: Float[Tensor, "n p"], batch: Batch, anchors: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss of unit-length projections of both views; ``anchors`` limits those of ``supcon``."""
        options = self.options
        if options.objective == "supcon":
            both = None if anchors is None else anchors.repeat(2)
            return supcon.supervised(z, batch.labels.repeat(2), options.tau, both)
        first, second = z.chunk(2)
        if options.objective == "simclr":
            return supcon.simclr(first, second, options.tau)
        old, seen = (part.to(z.device) for part in self.estimators.get(batch.ids))
        scalar, value, log_u = supcon.sogclr(first, second, old[:, 0].to(z), seen, options.tau, options.gamma)
        if len(batch) > 1:
            self.estimators.set(batch.ids, log_u[:, None])
        return valued(scalar, value)


def mlp(width: int, hidden: int, out: int, norm: bool = False) -> nn.Sequential:
    """Return linear, ReLU, linear, with a batch norm before the ReLU if asked, which keeps no running values."""
    between = [nn.BatchNorm1d(hidden, track_running_stats=False)] if norm else []
    return nn.Sequential(nn.Linear(width, hidden), *between, nn.ReLU(), nn.Linear(hidden, out))


@torch.no_grad()
def feature_width(clip: Clip) -> int:
    """Return the width of the features, which both towers share."""
    return clip.encode_text(["a"]).shape[1]
