"""Measure what the pretrained model's features achieve without training: the reference for a trained run to beat.

After each task a linear classifier is solved from sums over the training images seen so far; the model, the images and
the pixels are the run's own, and no image is kept. Of the closed forms below it is the one that gets the most training
images right that it was not fitted on (five-fold cross-validation), then solved on all of them. It is chosen anew each
time the number of images has grown fourfold, and after the last task. Nothing is drawn at random and no test label is
looked at; docs/decisions/0018-two-references.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.data.prompts import Prompts
from everclip.data.scenario import Task, seen
from everclip.methods.base.registry import method_class, options_of
from everclip.methods.shared.statistics import LinearStatistics
from everclip.methods.shared.sums import Sums
from everclip.models.clip import Clip
from everclip.training.extract import Rows, spread, unreadable

FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("slda", {}),
    *(("ridge", {"lam": lam}) for lam in (0.03, 0.1, 0.3, 1.0, 3.0)),
    ("ncm", {}),
)
"""Methods that train nothing, with their options; ties go to the first."""
FOLDS = 5
EACH = 50
"""Largest number of held-out images per class and task; more would hardly change the choice."""
CHUNK = 1024
"""Number of images in fp64 at a time."""

Known = tuple[Float[Tensor, "_n d"], Int64[Tensor, " _n"]]
"""Features and labels of images."""


def reference(
    clip: Clip, prompts: Prompts, tasks: Sequence[Task], loader: Loader, known: Mapping[int, Rows]
) -> dict[str, Any]:
    """Return the keys of results.json on the frozen features, including A_t of the strongest closed form.

    Afterwards broken images are forgotten and kept rows freed, so the run computes the same as without the reference.

    Args:
        known: features of the test images of tasks, where they have been computed already.

    Raises:
        RunError: not one training image of a task can be read.
    """
    trained = Trained(clip, prompts)
    tests: list[Known] = []
    accuracies: list[float] = []
    methods: list[str] = []
    best = chosen_on = 0
    for task in tasks:
        with loader.pixels.aside():
            train = _features(clip, loader, task.train)
            test = known.get(task.index) or _features(clip, loader, task.test)
        if train is None or (test is None and len(task.test)):
            raise unreadable(task)
        if task.index:  # those of the first task are asked for next
            loader.drop(task.train.ids)
        trained.add(*train)
        tests += [test[:2]] if test else []
        labels = seen(tasks[: task.index + 1])
        images = int(trained.whole.counts.sum())
        if images >= 4 * chosen_on or task is tasks[-1]:  # choosing is most of the cost
            best, chosen_on = trained.best(labels), images
        right = trained.right(best, trained.whole, labels, tests)
        accuracies.append(right / sum(len(labels) for _, labels in tests))
        name, options = FORMS[best]
        methods.append(" ".join([f"method={name}", *(f"method.{k}={v:g}" for k, v in options.items())]))
    return {
        "frozen_features": accuracies[-1],
        "frozen_features_after_stage": accuracies,
        "frozen_features_methods": methods,
    }


class Trained:
    """Sums over all training images and over each held-out part, with the features and labels of these parts."""

    def __init__(self, clip: Clip, prompts: Prompts) -> None:
        self._clip = clip
        self._forms: list[LinearStatistics] = []
        for name, options in FORMS:
            form = method_class(name).create(options_of(name, options), prompts)
            assert isinstance(form, LinearStatistics)
            self._forms.append(form)
        self.whole = Sums.empty(len(prompts.names), 0)
        self._folds: list[Sums] = []
        self._held: list[list[Known]] = [[] for _ in range(FOLDS)]

    def add(
        self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], ids: Int64[Tensor, " n"]
    ) -> None:
        """Add the images of a task."""
        if not self._folds:
            for form in self._forms:
                form.build(self._clip, features.shape[1])
            self.whole = Sums.empty(len(self.whole.counts), features.shape[1])
            self._folds = [self.whole] * FOLDS
        for part in torch.arange(len(labels)).split(CHUNK):
            self.whole = self.whole.plus(features[part], labels[part], ids[part])
        of = folds(labels, ids)
        for number in range(FOLDS):
            held = features[of == number], labels[of == number]
            self._folds[number] = self._folds[number].plus(*held, ids[of == number])
            self._held[number].append(held)

    def best(self, known: Sequence[int]) -> int:
        """Return the number of the form that gets most of the held-out images right, each time fitted on the others."""
        right = [0] * len(FORMS)
        for fold, held in zip(self._folds, self._held, strict=True):
            if len(fold.ids):
                others = self.whole.without(fold)
                right = [count + self.right(form, others, known, held) for form, count in enumerate(right)]
        return right.index(max(right))

    def right(self, form: int, sums: Sums, known: Sequence[int], images: Sequence[Known]) -> int:
        """Count the images that one of the forms, solved from some sums, gets right among the labels known."""
        solver, columns, count = self._forms[form], torch.tensor(known), 0
        solver.take(sums)
        weight, bias = solver.solve(self._clip, [*known])
        for features, labels in images:
            for rows, truth in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
                scores = torch.addmm(bias, solver.rows(rows), weight)
                count += int((columns[scores.argmax(1).cpu()] == truth).sum())
        return count


def folds(labels: Int64[Tensor, " n"], ids: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return the part in which each image is held out, by its place among the ids of its class; -1 for none.

    The only image of a class is never held out, so that the rest always has images of every class.
    """
    found = torch.full_like(labels, -1)
    for label in labels.unique():
        where = (labels == label).nonzero()[:, 0]
        if len(where) > 1:
            first = where[ids[where].argsort()][:EACH]
            found[first] = torch.arange(len(first)) % FOLDS
    return found


def _features(clip: Clip, loader: Loader, images: ImageSet) -> Rows | None:
    """Return features, labels and ids of the images that can be read; None where there are none."""
    return spread(loader, images, lambda batch: clip.encode_image(batch.images))
