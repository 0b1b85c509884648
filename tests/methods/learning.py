"""A method led through tasks by hand, on a tiny model and random pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from everclip.data.images import ImageSet
from everclip.data.loader import Batch
from everclip.data.scenario import Task
from everclip.methods.base.method import Method
from everclip.models.clip import Clip
from everclip.training.optim import Update
from tests.methods.plain import STORE
from tests.running import configured


def task_of(labels: Sequence[int], index: int = 0, first: int = 0) -> Task:
    """Task ``index``, whose images have these labels and ids from ``first``."""
    ids = np.arange(first, first + len(labels))
    images = ImageSet(STORE, ids, np.array(labels), np.zeros_like(ids), ids)
    return Task(index, f"task {index + 1}", tuple(dict.fromkeys(labels)), images, images)


def batch_of(task: Task, seed: int = 0, current: bool = True) -> Batch:
    """All images of a task as one batch of random pictures of 32 x 32 pixels."""
    count, random = len(task.train), torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=random)
    labels, domains, ids = (
        torch.from_numpy(column) for column in (task.train.labels, task.train.domains, task.train.ids)
    )
    return Batch(pictures, labels, domains, ids, torch.full((count,), current), seed=seed)


def joined(first: Batch, second: Batch) -> Batch:
    """Both batches as one."""
    names = ("images", "labels", "domains", "ids", "current")
    return replace(first, **{name: torch.cat([vars(first)[name], vars(second)[name]]) for name in names})


def begin(method: Method, clip: Clip, task: Task, train: ImageSet | None = None) -> None:
    method.grow(clip, task)
    method.begin_task(clip, task, task.train if train is None else train)


def steps(
    method: Method, clip: Clip, task: Task, batch: Batch, count: int, *tokens: str
) -> list[dict[str, float]]:
    """The terms of each of ``count`` steps on one batch."""
    method = method.learner(task)
    (phase,) = method.phases(task)
    method.begin_phase(clip, phase)
    words = ("train.lr=1e-3", "train.lr_text=1e-3", "train.warmup=0")
    given = {token.partition("=")[0] for token in tokens}
    train = configured(*(w for w in words if w.partition("=")[0] not in given), *tokens).train
    update, log = Update(clip, method, phase, train, 4 * count), []
    for _ in range(count):
        terms = method.loss(method.encode(clip, batch, phase), batch, phase) | method.penalty(clip)
        log.append({name: term.item() for name, term in terms.items()})
        update.step(terms, "here", [])
        method.after_step(clip)
    return log
