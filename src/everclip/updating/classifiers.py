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
from everclip.inference.model import Deployed, of_plan, plan_of, zero_shot
from everclip.methods.shared.statistics import Statistics
from everclip.methods.shared.sums import Sums
from everclip.models.clip import Clip, Images
from everclip.models.depths import Depths
from everclip.runs.card import Card, CardTask
from everclip.training.restore import freeze, grow

BATCH = 128
LAYERED = "multilayer_lda"
"""The method that reads more of the tower than the embedding, with its defaults."""
READ = Depths()


@dataclass(frozen=True)
class Known:
    """The names that a version knows.

    Args:
        names: class names, index = label.
        tasks: the labels learned by each update.
        templates: prompts of the class embeddings.
        base: settings of the model that the first version began with: ``model``, ``image_size``, ``center``, and
            ``defaults`` (1 where it is missing).
    """

    names: tuple[str, ...]
    tasks: tuple[CardTask, ...]
    templates: tuple[str, ...]
    base: Mapping[str, Any]

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
    width = widths(clip)[0]
    return slice(width, None) if method == LAYERED else slice(width)


def layered(clip: Clip, sums: Sums) -> bool:
    """Return whether sums hold the layers as well as the embedding; those of older versions do not.

    Raises:
        ValueError: they are of another model's features.
    """
    embedding, layers = widths(clip)
    if sums.width not in (embedding, embedding + layers):
        raise ValueError("its sums are of another model's features")
    return sums.width > embedding


@torch.no_grad()
def features(
    clip: Clip, images: ImageSet, pixels: Pixels, layers: bool = True, step: Step = silent
) -> Float32[Tensor, "n m"]:
    """Return the features to be summed, of the readable images in their order, on the CPU.

    Args:
        layers: whether to append what ``LAYERED`` reads of the tower to the unit-length embedding.
        step: is called with the number of images just done.
    """
    rows = [_rows(clip, batch.images, layers).cpu() for batch in _plain(images, pixels, step)]
    return torch.cat(rows) if rows else torch.zeros(0, sum(widths(clip)[: 1 + layers]))


def _rows(clip: Clip, images: Images, layers: bool) -> Float32[Tensor, "b m"]:
    if not layers:
        return clip.encode_image(images)
    raw, beside = READ.beside(clip.model.visual, clip.normalise(images))
    return torch.cat([clip.unit(raw), beside], 1)


@torch.no_grad()
def widths(clip: Clip) -> tuple[int, int]:
    """Return lengths of the embedding and of the layers."""
    raw, beside = READ.beside(clip.model.visual, clip.normalise(clip.blank()))
    return raw.shape[1], beside.shape[1]


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
