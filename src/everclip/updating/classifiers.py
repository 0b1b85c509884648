"""Build the next version's classifier: the text tower, or one solved from sums of frozen features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.inventory import Step, silent
from everclip.data.loader import Batch, Loader
from everclip.data.pixels import Pixels
from everclip.data.scenario import seen
from everclip.index.embed import width as embedding
from everclip.inference.model import Deployed, of_plan, zero_shot
from everclip.methods.base.registry import options_of
from everclip.methods.shared.layers import LayersConfig
from everclip.methods.shared.statistics import Statistics
from everclip.methods.shared.sums import Sums
from everclip.models.clip import Clip, Images
from everclip.models.depths import Depths
from everclip.runs.card import Card, CardTask
from everclip.training.plan import plan_of
from everclip.training.restore import freeze, grow

BATCH = 128
LAYERED = "multilayer_lda"
"""The method that reads more of the tower than the embedding, with its defaults."""


@dataclass(frozen=True)
class Known:
    """The names that a version knows.

    Args:
        names: class names, index = label.
        tasks: the labels learned by each update.
        templates: prompts of the class embeddings.
        base: settings of the model that the first version began with: ``model``, ``image_size``, ``center``, and
            ``defaults``, the generation of defaults that its methods have (1 where it is missing).
    """

    names: tuple[str, ...]
    tasks: tuple[CardTask, ...]
    templates: tuple[str, ...]
    base: Mapping[str, Any]

    @property
    def depths(self) -> Depths:
        """What ``LAYERED`` reads of a tower, by the defaults of these versions."""
        options = options_of(LAYERED, {}, defaults=self.base.get("defaults", 1))
        assert isinstance(options, LayersConfig)
        return options.depths

    def placed(self, names: tuple[str, ...], place: Sequence[int]) -> Known:
        """Return the edited classes; ``place`` has the new label of each old one, -1 for one that is removed."""
        tasks = []
        for task in self.tasks:
            labels = list(dict.fromkeys(place[label] for label in task.labels if place[label] >= 0))
            if labels:
                tasks.append(CardTask(name=task.name, labels=labels))
        return replace(self, names=names, tasks=tuple(tasks))

    def card(self, classifier: Any, method: Mapping[str, Any]) -> Card:
        """Return the card of a version that ``method`` makes."""
        return Card(
            classes=list(self.names),
            tasks=list(self.tasks),
            templates=list(self.templates),
            classifier=classifier,
            settings={**self.base, "method": dict(method)},
        )


def text_form(spec: str, known: Known, clip: Clip, method: str) -> Deployed:
    """Return the text tower of ``clip`` over all classes; ``method`` is what trained it, for the record."""
    plan = plan_of(known.card("text", {"name": method}))
    made = zero_shot(spec, clip, known.names, known.templates)
    return replace(made, labels=seen(plan.tasks), plan=plan)


def closed_form(spec: str, known: Known, clip: Clip, method: Mapping[str, Any], sums: Sums) -> Deployed:
    """Return a classifier that the method ``method["name"]`` solves from sums of features of ``clip``."""
    plan = plan_of(known.card("method", method))
    plan.method.to(clip.device)
    for task in plan.tasks:
        grow(plan, clip, task)
    assert isinstance(plan.method, Statistics)
    plan.method.take(sums.columns(columns_of(method["name"], clip)))
    freeze(plan, clip)
    return of_plan(spec, plan, clip, len(plan.tasks) - 1)


def columns_of(method: str, clip: Clip) -> slice:
    """Return the columns of ``features`` that a method reads."""
    length = embedding(clip)
    return slice(length, None) if method == LAYERED else slice(length)


def layered(known: Known, clip: Clip, sums: Sums) -> Depths | None:
    """Return what sums hold besides the embedding; None for those of older versions, which have it alone.

    Raises:
        ValueError: they are of another model's features.
    """
    if sums.width == embedding(clip):
        return None
    if sums.width != width(known, clip):
        raise ValueError("its sums are of another model's features")
    return known.depths


@torch.no_grad()
def features(
    clip: Clip, images: ImageSet, pixels: Pixels, layers: Depths | None, step: Step = silent
) -> Float32[Tensor, "n m"]:
    """Return the features to be summed, of the readable images in their order, on the CPU.

    Args:
        layers: what is read of the tower and appended to the unit-length embedding, if anything.
        step: is called with the number of images just done.
    """
    rows = [_rows(clip, batch.images, layers).cpu() for batch in _plain(images, pixels, step)]
    return torch.cat(rows) if rows else _rows(clip, clip.blank(), layers)[:0].cpu()


def _rows(clip: Clip, images: Images, layers: Depths | None) -> Float32[Tensor, "b m"]:
    if layers is None:
        return clip.encode_image(images)
    raw, beside = layers.beside(clip.model.visual, clip.normalise(images))
    return torch.cat([clip.unit(raw), beside], 1)


@torch.no_grad()
def width(known: Known, clip: Clip) -> int:
    """Return the length of the features of a first version: the embedding and the layers."""
    return _rows(clip, clip.blank(), known.depths).shape[1]


@torch.no_grad()
def scores(
    model: Deployed, images: ImageSet, pixels: Pixels, step: Step = silent
) -> Float32[np.ndarray, "n c"]:
    """Return scores of the readable images, one column per label of the model; ``step`` as for ``features``."""
    rows = [model.classifier(batch.images).float().cpu() for batch in _plain(images, pixels, step)]
    return torch.cat(rows).numpy() if rows else np.zeros((0, len(model.labels)), dtype=np.float32)


def _plain(images: ImageSet, pixels: Pixels, step: Step) -> Iterator[Batch]:
    for batch in Loader(pixels, BATCH).plain(images, BATCH):
        yield batch
        step(len(batch))


def weights_of(clip: Clip, state: Mapping[str, Tensor]) -> Clip:
    """Return a copy of ``clip`` with other weights."""
    made = copy.deepcopy(clip)
    made.model.load_state_dict(dict(state))
    return made


def labels_of(names: Sequence[str], known: Sequence[str], same: Mapping[str, str] | None = None) -> list[int]:
    """Return the label of each name, -1 for one not known; ``same`` maps names to known ones."""
    place = {name: label for label, name in enumerate(known)}
    return [place.get((same or {}).get(name, name), -1) for name in names]
