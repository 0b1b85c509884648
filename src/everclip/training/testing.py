"""Test after each stage as the scenario says: which tasks, and among which classes; or by captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.data.inventory import silent
from everclip.data.scenario import Task, seen
from everclip.methods.base.method import Classifier, TextClassifier, sharpness
from everclip.models.clip import Images
from everclip.training.context import Context
from everclip.training.evaluate import Measured, Scores, evaluate
from everclip.training.plan import Plan
from everclip.training.retrieve import retrieve


def tested(plan: Plan, stage: int) -> list[Task]:
    """Return the tasks that are tested after a stage: those learned and, for forward transfer, the next; or all of
    them."""
    if plan.scenario.task_id is not None:
        return plan.tasks
    return plan.tasks[: stage + 1 + plan.config.evaluate.ahead]


def scores(
    context: Context, tasks: Sequence[Task], stage: int, count: Callable[[int], object] = silent
) -> Measured:
    """Return scores of the test images of some tasks after a stage; with captions, recalls.

    Args:
        count: is told how many more images were tested.

    Raises:
        RunError: not one test image of a task can be read.
    """
    clip, method, plan = context.clip, context.method, context.plan
    if plan.data.captioned:
        return retrieve(method.encoder(clip), tasks, context.loader, count)
    task_id = plan.scenario.task_id

    def classifier(labels: tuple[int, ...]) -> nn.Module:
        if task_id is None:
            return method.classifier(clip, labels)
        learned = seen(plan.tasks[: stage + 1])
        own = method.classifier(clip, learned)
        if isinstance(own, Classifier) and own.any_name:
            return method.classifier(clip, labels)
        names = [plan.prompts.names[label] for label in labels]
        text = TextClassifier(clip, clip.class_embeddings(names, plan.prompts.templates))
        return Handed(own, text, len(learned), task_id == "known")

    return among(evaluate(classifier, tasks, context.loader, count), tasks, task_id)


def among(found: Scores, tasks: Sequence[Task], task_id: Literal["known", "unknown"] | None) -> Scores:
    """Return scores in which only the scenario's classes compete: where the task is known, its own."""
    if task_id is None:
        return found
    if task_id == "unknown":
        return replace(found, everything=True)
    masked = found.scores.copy()
    for task in tasks:
        other = ~np.isin(found.labels, task.classes)
        masked[np.ix_(found.tasks == task.index, other)] = -np.inf
    return replace(found, scores=masked, everything=True)


class Handed(Classifier):
    """A classifier of the classes learned that hands images it cannot recognise to the text tower.

    Args:
        own: images to scores of the classes learned.
        text: images to cosines of all classes, those learned first.
        learned: how many those are.
        known: whether each image's task will be given: then both scores are put side by side. Else an image that the
            text tower takes for a class not learned gets that class, any other the class that ``own`` says (RAIL, Xu et
            al. 2024).
    """

    def __init__(self, own: nn.Module, text: Classifier, learned: int, known: bool) -> None:
        super().__init__()
        self.own, self.text = own, text
        self.learned, self.known = learned, known
        self.own_logits = sharpness(own)

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        text = self.text(images).float() * self.text.to_logits
        own = self.own(images).float() * self.own_logits
        if self.known:
            return torch.cat([own, text[:, self.learned :]], dim=1)
        handed = text.argmax(1) >= self.learned
        own = own.masked_fill(handed[:, None], -torch.inf)
        rest = text[:, self.learned :].masked_fill(~handed[:, None], -torch.inf)
        return torch.cat([own, rest], dim=1)
