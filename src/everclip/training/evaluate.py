"""Evaluate the pretrained model first, and after each stage all tasks seen and the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from everclip.data.inventory import silent
from everclip.data.loader import Batch, Loader
from everclip.data.scenario import Task, seen
from everclip.methods.base.method import sharpness
from everclip.metrics.calibration import probabilities
from everclip.models.clip import Clip, Images
from everclip.training.extract import Rows, spread, unreadable


class Measured(ABC):
    """The results of a model on the test images of some tasks.

    Attributes:
        labels: in the order learned.
        truth: int64 ``[n]``, the label of each image.
        everything: whether all classes compete, those not learned yet too, whatever ``among`` says.
    """

    labels: tuple[int, ...]
    truth: NDArray[np.int64]
    everything: bool = False

    @abstractmethod
    def accuracy(self, task: int, among: int) -> float | None:
        """Return a task's accuracy in 0..1, among the first ``among`` classes learned; None: no images."""

    @abstractmethod
    def accuracy_up_to(self, task: int, among: int) -> float:
        """Return the same over all images of tasks 0..``task``."""

    @abstractmethod
    def per_class(self, among: int, tasks: int) -> dict[int, float]:
        """Label -> the same over the images of the first ``tasks`` tasks."""

    @abstractmethod
    def count(self, task: int) -> int:
        """Return the number of images of a task."""


@dataclass(frozen=True, eq=False)
class Scores(Measured):
    """The scores that a model gives the test images of some tasks.

    Args:
        labels: ``[c]`` label of each column, in the order learned.
        tasks, truth, ids: int64 ``[n]``, one row per image that could be read.
        scores: float32 ``[n, c]``.
        to_logits: factor that turns the scores into logits of a softmax.
        everything: whether all classes compete, those not learned yet too, whatever ``among`` says.
    """

    labels: tuple[int, ...]
    tasks: NDArray[np.int64]
    truth: NDArray[np.int64]
    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    to_logits: float = 1.0
    everything: bool = False

    def _among(self, rows: NDArray[np.bool_], among: int) -> NDArray[np.float32]:
        """Return scores of some rows in the columns that compete."""
        return self.scores[rows] if self.everything else self.scores[rows, :among]

    def predicted(self, among: int, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return predicted labels of some rows, among the first ``among`` columns."""
        return np.asarray(self.labels)[self._among(rows, among).argmax(axis=1)]

    def accuracy(self, task: int, among: int) -> float | None:
        """Return the fraction of a task's images that are right, among the first ``among`` classes learned; None: no
        images."""
        rows = self.tasks == task
        return self._right(rows, among) if rows.any() else None

    def accuracy_up_to(self, task: int, among: int) -> float:
        """Return the same over all images of tasks 0..``task`` (A_t, weighted by images)."""
        return self._right(self.tasks <= task, among)

    def _right(self, rows: NDArray[np.bool_], among: int) -> float:
        return float((self.predicted(among, rows) == self.truth[rows]).mean())

    def per_class(self, among: int, tasks: int) -> dict[int, float]:
        """Label -> accuracy over the images of the first ``tasks`` tasks."""
        rows = self.tasks < tasks
        right = self.predicted(among, rows) == self.truth[rows]
        return {
            int(label): float(right[self.truth[rows] == label].mean())
            for label in np.unique(self.truth[rows])
        }

    def count(self, task: int) -> int:
        """Return the number of images of a task."""
        return int((self.tasks == task).sum())

    def top(self, among: int, tasks: int, k: int = 5) -> dict[str, NDArray]:
        """Return columns of ``predictions.npz``: id, label, the k best labels, margin of the best score to the second,
        confidence: the softmax's probability of the best one, before any calibration.
        """
        rows = self.tasks < tasks
        scores = self._among(rows, among)
        k = min(k, scores.shape[1])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ordered = np.take_along_axis(scores, best, axis=1)
        margin = ordered[:, 0] - ordered[:, 1] if k > 1 else np.full(len(scores), np.inf)
        sure = probabilities(self.to_logits * scores.astype(np.float64)).max(axis=1)
        return {
            "id": self.ids[rows],
            "label": self.truth[rows],
            "top": np.asarray(self.labels, dtype=np.int64)[best],
            "margin": margin.astype(np.float32),
            "confidence": sure.astype(np.float32),
        }


@torch.inference_mode()
def evaluate(
    classifier: Callable[[tuple[int, ...]], nn.Module],
    tasks: Sequence[Task],
    loader: Loader,
    count: Callable[[int], object] = silent,
) -> Scores:
    """Return scores of the tasks' test images over all the classes of these tasks; each image is encoded once.

    Several processes share the images, and all of them get all scores.

    Args:
        classifier: maps labels to a module that maps normalised images to scores; called once.
        count: called with the number of newly tested images.

    Raises:
        RunError: not one test image of a task can be read.
    """
    labels = seen(tasks)
    classify = classifier(labels)
    modes = [(module, module.training) for module in classify.modules()]
    classify.eval()
    found = _tested(tasks, loader, lambda images: classify(images).float(), count)
    for module, training in modes:  # it may hold modules of the method, such as its head
        module.training = training
    return _scores(labels, found, sharpness(classify))


@torch.inference_mode()
def evaluate_pretrained(
    clip: Clip,
    weights: Float[Tensor, "c d"],
    tasks: Sequence[Task],
    loader: Loader,
    count: Callable[[int], object] = silent,
) -> tuple[Scores, dict[int, Rows]]:
    """Compute zero-shot scores and image features by task; other uses of the frozen tower reuse the features.

    Args:
        weights: class embeddings of all classes of the tasks, in the order learned.
        count: called with the number of newly tested images.

    Raises:
        RunError: not one test image of a task can be read.
    """

    def both(images: Images) -> Float[Tensor, "b e"]:
        features = clip.encode_image(images)
        return torch.cat([features, features @ weights.T], dim=1)

    width = weights.shape[1]
    found = _tested(tasks, loader, both, count)
    features, scores = (
        {task: (rows[:, part], truth, ids) for task, (rows, truth, ids) in found.items()}
        for part in (slice(width), slice(width, None))
    )
    return _scores(seen(tasks), scores, clip.logit_scale.exp().item()), features


def _tested(
    tasks: Sequence[Task],
    loader: Loader,
    compute: Callable[[Images], Tensor],
    count: Callable[[int], object],
) -> dict[int, Rows]:
    """Return rows of the test images of each task that has some."""
    rows: dict[int, Rows] = {}

    def counted(batch: Batch) -> Tensor:
        found = compute(batch.images)
        count(len(batch))
        return found

    for task in tasks:
        if not len(task.test):  # it brings nothing new to be tested
            continue
        found = spread(loader, task.test, counted)
        if found is None:
            raise unreadable(task, "test")
        rows[task.index] = found
    return rows


def _scores(labels: tuple[int, ...], rows: Mapping[int, Rows], to_logits: float) -> Scores:
    scores, truth, ids = (torch.cat(part).numpy() for part in zip(*rows.values(), strict=True))
    owner = np.repeat(np.array([*rows], dtype=np.int64), [len(found[1]) for found in rows.values()])
    return Scores(labels, owner, truth, ids, scores, to_logits)
