"""Form a next version: classes by the text tower, or by a classifier solved from sums of frozen features."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.data.scenario import seen
from everclip.inference.model import Deployed, of_plan, plan_of, zero_shot
from everclip.methods.shared.statistics import Statistics
from everclip.methods.shared.sums import Sums
from everclip.methods.shared.weights import blend
from everclip.models.clip import Clip
from everclip.runs.card import Card, CardTask
from everclip.training.restore import freeze, grow

BATCH = 128


@dataclass(frozen=True)
class Known:
    """The names that a version knows.

    Args:
        names: class names, index = label.
        tasks: the labels learned by each update.
        templates: prompts of the class embeddings.
        base: settings of the model that the first version began with: ``model``, ``image_size``, ``center``, and
            ``defaults``, 1 where it is not there.
    """

    names: tuple[str, ...]
    tasks: tuple[CardTask, ...]
    templates: tuple[str, ...]
    base: Mapping[str, Any]

    def card(self, classifier: Any, method: Mapping[str, Any]) -> Card:
        """The card of a version that a method makes."""
        return Card(
            classes=list(self.names),
            tasks=list(self.tasks),
            templates=list(self.templates),
            classifier=classifier,
            settings={**self.base, "method": dict(method)},
        )


def text_form(spec: str, known: Known, clip: Clip, method: str) -> Deployed:
    """The text tower of ``clip`` over all classes; ``method`` is what trained it, for the record."""
    plan = plan_of(known.card("text", {"name": method}))
    made = zero_shot(spec, clip, known.names, known.templates)
    return replace(made, labels=seen(plan.tasks), plan=plan)


def closed_form(spec: str, known: Known, clip: Clip, method: Mapping[str, Any], sums: Sums) -> Deployed:
    """A classifier that the method ``method["name"]`` solves from sums of features of ``clip``."""
    plan = plan_of(known.card("method", method))
    plan.method.to(clip.device)
    for task in plan.tasks:
        grow(plan, clip, task)
    assert isinstance(plan.method, Statistics)
    plan.method.take(sums)
    freeze(plan, clip)
    return of_plan(spec, plan, clip, len(plan.tasks) - 1)


def mixed(before: Clip, after: Clip, share: float) -> Clip:
    """A model with a fraction of the weights of ``after`` (WiSE-FT, https://arxiv.org/abs/2109.01903)."""
    made = copy.deepcopy(after)
    with torch.no_grad():
        made.model.load_state_dict(blend(before.model.state_dict(), after.model.state_dict(), share))
    return made


@torch.no_grad()
def features(clip: Clip, images: ImageSet, pixels: Pixels) -> Float32[Tensor, "n d"]:
    """Unit-length features of images that can be read, in their order, on the CPU."""
    rows = [clip.encode_image(batch.images).cpu() for batch in _plain(images, pixels)]
    return torch.cat(rows) if rows else torch.zeros(0, width(clip))


@torch.no_grad()
def width(clip: Clip) -> int:
    """Length of a feature."""
    blank = torch.zeros(1, 3, clip.image_size, clip.image_size, dtype=torch.uint8)
    return clip.encode_image(blank).shape[1]


@torch.no_grad()
def scores(model: Deployed, images: ImageSet, pixels: Pixels) -> Float32[np.ndarray, "n c"]:
    """Scores of images that can be read, one column per label of the model."""
    rows = [model.classifier(batch.images).float().cpu() for batch in _plain(images, pixels)]
    return torch.cat(rows).numpy() if rows else np.zeros((0, len(model.labels)), dtype=np.float32)


def _plain(images: ImageSet, pixels: Pixels) -> Any:
    return Loader(pixels, BATCH).plain(images, BATCH)


def weights_of(clip: Clip, state: Mapping[str, Tensor]) -> Clip:
    """A copy of ``clip`` with other weights."""
    made = copy.deepcopy(clip)
    made.model.load_state_dict(dict(state))
    return made


def labels_of(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Label of each name, -1 for one not known."""
    place = {name: label for label, name in enumerate(known)}
    return [place.get(name, -1) for name in names]
