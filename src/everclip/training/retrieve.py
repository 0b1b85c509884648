"""Search captions by images and images by captions, on the test images of each task and of all tasks so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.batch import Batch
from everclip.data.captions import Gallery
from everclip.data.images import ImageSet
from everclip.data.inventory import silent
from everclip.data.loader import Loader
from everclip.data.scenario import Task, seen
from everclip.metrics.retrieval import WAYS, Ranks, ranked, share
from everclip.models.clip import Clip
from everclip.training.evaluate import Measured
from everclip.training.extract import spread, unreadable

log = logging.getLogger("everclip")


@dataclass(frozen=True, eq=False)
class Searched:
    """The features of a set of test images and of their captions, and how each is found among the others.

    Args:
        images, texts: float32 ``[n, d]`` and ``[m, d]``, unit length.
        gallery: the captions, and whose they are.
        labels: int64 ``[n]``, the group of each image.
        ranks: of the images among these texts, and of the texts among these images.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    gallery: Gallery
    labels: NDArray[np.int64]
    ranks: Ranks

    def summary(self) -> dict[str, Any]:
        """Return recalls and median ranks of both directions, with the number of images and of distinct captions."""
        return {"images": len(self.images), "captions": len(self.texts), **self.ranks.summary()}


@dataclass(frozen=True, eq=False)
class Recalls(Measured):
    """What a model finds among the test images of some tasks, each searched by itself.

    Its accuracy is the mean of Recall@1 of both directions.

    Args:
        labels: the groups of these tasks.
        truth: int64 ``[n]``, the group of each image.
        found: by task, without the tasks that have no test images.
    """

    labels: tuple[int, ...]
    truth: NDArray[np.int64]
    found: Mapping[int, Searched]

    def accuracy(self, task: int, among: int) -> float | None:
        """Return the mean of Recall@1 of both directions, of a task; None: no images. ``among`` does not matter."""
        return self.found[task].ranks.recall if task in self.found else None

    def accuracy_up_to(self, task: int, among: int) -> float:
        """Return the mean of the same over tasks 0..``task``, weighted by images."""
        upto = [one for index, one in self.found.items() if index <= task]
        return sum(one.ranks.recall * len(one.images) for one in upto) / sum(len(one.images) for one in upto)

    def per_class(self, among: int, tasks: int) -> dict[int, float]:
        """Group -> the same over its images of the first ``tasks`` tasks and their captions."""
        sides: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for index, one in self.found.items():
            if index >= tasks:
                continue
            owner = np.zeros(len(one.texts), dtype=np.int64)
            owner[one.gallery.pairs[::-1, 1]] = one.labels[one.gallery.pairs[::-1, 0]]  # its first image's
            for label in np.unique(one.labels).tolist():
                images, texts = sides.setdefault(label, ([], []))
                images.append(one.ranks.images[one.labels == label])
                texts.append(one.ranks.texts[owner == label])
        return {label: _mean(*map(np.concatenate, both)) for label, both in sides.items()}

    def count(self, task: int) -> int:
        """Return the number of images of a task."""
        return len(self.found[task].images) if task in self.found else 0

    def summary(self, tasks: int) -> dict[str, Any]:
        """Return recalls and median ranks of each of the first ``tasks`` tasks, and of all their images together."""
        together = _joined([one for index, one in self.found.items() if index < tasks]).summary()
        each = [self.found[task].summary() if task in self.found else None for task in range(tasks)]
        return {"tasks": each, "together": together}


def _mean(images: NDArray[np.int64], texts: NDArray[np.int64]) -> float:
    """Return the mean Recall@1 of the sides that have queries."""
    known = [share(ranks, 1) for ranks in (images, texts) if len(ranks)]
    return sum(known) / len(known)


def _joined(parts: Sequence[Searched]) -> Searched:
    """Return all parts as one set, in which a text of several parts counts once."""
    if len(parts) == 1:
        return parts[0]
    place: dict[str, int] = {}
    rows, pairs, first = list[NDArray[np.float32]](), list[NDArray[np.int64]](), 0
    for part in parts:
        at = []
        for text, row in zip(part.gallery.texts, part.texts, strict=True):
            if text not in place:
                rows.append(row)
            at.append(place.setdefault(text, len(place)))
        image, text = part.gallery.pairs.T
        pairs.append(np.stack([image + first, np.array(at, dtype=np.int64)[text]], 1))
        first += len(part.images)
    gallery = Gallery([*place], np.concatenate(pairs))
    images, texts = np.concatenate([part.images for part in parts]), np.stack(rows)
    labels = np.concatenate([part.labels for part in parts])
    return Searched(images, texts, gallery, labels, ranked(images, texts, gallery.pairs))


@torch.inference_mode()
def retrieve(
    clip: Clip, tasks: Sequence[Task], loader: Loader, count: Callable[[int], object] = silent
) -> Recalls:
    """Search the test images of each task by their captions, and the other way round.

    Several processes share the images, and all of them get all ranks.

    Args:
        count: is told how many more images were tested.

    Raises:
        RunError: not one test image of a task can be read.
    """
    found: dict[int, Searched] = {}
    for task in tasks:
        if not len(task.test):
            continue
        one = search(clip, task.test, loader, count)
        if one is None:
            raise unreadable(task, "test")
        found[task.index] = one
    return Recalls(seen(tasks), np.concatenate([one.labels for one in found.values()]), found)


@torch.inference_mode()
def search(
    clip: Clip, images: ImageSet, loader: Loader, count: Callable[[int], object] = silent
) -> Searched | None:
    """Search a set of images with captions among themselves; None where none of them can be read."""
    assert images.captions is not None

    def counted(batch: Batch) -> Tensor:
        features = clip.encode_image(batch.images)
        count(len(batch))
        return features

    rows = spread(loader, images, counted)
    if rows is None:
        return None
    features, labels, ids = (part.numpy() for part in rows)
    row = dict(zip(images.ids.tolist(), images.rows.tolist(), strict=True))
    gallery = images.captions.gallery(np.array([row[sample] for sample in ids.tolist()], dtype=np.int64))
    texts = clip.encode_text(gallery.texts).cpu().numpy()
    return Searched(features, texts, gallery, labels, ranked(features, texts, gallery.pairs))


def told(retrieval: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the retrieval keys of results.json, the last stage's numbers as keys of their own; none for other runs.

    Args:
        retrieval: summaries of the pretrained model, and after each stage.
    """
    if retrieval is None:
        return {}
    last = retrieval["after_stage"][-1]["together"]
    numbers = {f"{way}_{name}": last[way][name] for way in WAYS for name in last[way]}
    return {"retrieval": retrieval, **numbers}


def warn_of_long(clip: Clip, images: ImageSet) -> None:
    """Warn once of captions that are longer than the text tower reads."""
    assert images.captions is not None
    texts = images.captions.texts
    long, length = clip.text.truncated(texts)
    if long:
        log.warning(
            "%d of %d captions are longer than the %d tokens that the text tower reads: their ends are left out",
            *(long, len(texts), length),
        )
