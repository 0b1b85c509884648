"""Closed-form methods on features given by hand, and led through tasks of random pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from everclip.data.loader import Batch
from everclip.data.scenario import Task
from everclip.methods.base.registry import method_class
from everclip.methods.shared.closed_form import FREE, LAMS
from everclip.models.clip import Clip
from tests.methods.plain import PROMPTS, images

T = torch.tensor([[1, 0], [0.8, 0.2], [0, 1], [0.1, 0.9], [0.7, 0.7], [0.6, 0.8]], dtype=torch.float64)
LABELS = [0, 0, 1, 1, 2, 2]
QUERY = torch.tensor([0.5, 0.6], dtype=torch.float64)
LAM = {"lam": 0.1, "lam_unit": "absolute"}
SMALL: dict[str, dict[str, Any]] = {
    "rail": {"width": 24},
    "ranpac": {"width": 24, "lam_choice": "fixed"},
    "vis": {"width": 24, "hidden": 0},
}
NAMES = ("ncm", "ridge", "ranpac", "slda")


def make(name: str, **options: Any) -> Any:
    cls = method_class(name)
    return cls.create(cls.Config.model_validate(SMALL.get(name, {}) | options), PROMPTS)


def of_rows(clip: Clip, name: str, **options: Any) -> Any:
    """A method whose features are given: two numbers each."""
    method = make(name, **options)
    method.build(clip, 2)
    return method


def give(method: Any, which: Sequence[int], labels: Sequence[int] = LABELS, weighted: bool = False) -> None:
    """Add rows of T."""
    known = torch.tensor(labels)
    counts = known.bincount()[known].double()
    part = list(which)
    method.add(T[part], known[part], *([1 / counts[part]] if weighted else []))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(value: Tensor, expected: Any) -> None:
    assert_close(value, torch.tensor(expected, dtype=torch.float64), atol=2e-8, rtol=0)


def on_apples_gpu(*shape: int) -> Tensor:
    """A tensor of this shape without values: what meets it on another device is refused, as it would be there."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.zeros(shape, device="mps")


def pictures(count: int = 48, classes: int = 6) -> Batch:
    """Random pictures, classes in turn, of different brightness."""
    random = torch.Generator().manual_seed(3)
    shade = torch.randint(40, 255, (count, 3, 1, 1), generator=random)
    pixels = torch.rand(count, 3, 32, 32, generator=random) * shade
    ids = torch.arange(count)
    labels = ids % classes
    return Batch(pixels.to(torch.uint8), labels, labels * 0, ids, ids > -1, seed=5)


def part(on: Batch, which: Tensor) -> Batch:
    columns = ("images", "labels", "domains", "ids", "current")
    return replace(on, **{name: getattr(on, name)[which] for name in columns})


def learn(method: Any, clip: Clip, tasks: Iterable[Tensor], size: int = 128) -> Any:
    """Lead a method through tasks of pictures, in batches of a size, with all pictures so far as a memory."""
    on, past = pictures(), []
    torch.manual_seed(11)
    for index, which in enumerate(tasks):
        labels = on.labels[which].tolist()
        task = Task(index, f"task {index + 1}", tuple(sorted(set(labels))), images(labels), images(labels))
        method.grow(clip, task)
        assert method.phases(task) == []
        method.begin_task(clip, task, task.train)
        past.append(part(on, which))
        method.end_task(clip, task, [part(on, chunk) for chunk in which.split(size)], past)
    return method


def by_class(*classes: Sequence[int]) -> list[Tensor]:
    labels = pictures().labels
    return [torch.isin(labels, torch.tensor(part)).nonzero()[:, 0] for part in classes]


@torch.no_grad()
def scores(method: Any, clip: Clip, labels: Sequence[int] = range(6)) -> Tensor:
    return method.classifier(clip, tuple(labels))(clip.normalise(pictures().images))


EVERYTHING = torch.arange(48)
COURSES = {
    "all at once": ([EVERYTHING], 48),
    "permuted": (by_class([4], [5, 0, 1], [3, 2]), 128),
    "small batches": (by_class([0, 1], [2, 3], [4, 5]), 5),
    "classes come again": ([EVERYTHING[::3], EVERYTHING[2::3], EVERYTHING[1::3]], 7),
}
"""The pictures of each task, and the size of a batch."""


def brute_force(x: np.ndarray, y: np.ndarray, prior: np.ndarray | None = None) -> float:
    """Generalised cross-validation: the lam of the grid with the least score, the hat matrix of each written out.

    Among those that leave ``FREE`` of the degrees of freedom; the largest where none does.
    """
    left = y if prior is None else y - x @ prior
    scores, largest = {}, max(LAMS)
    for factor in LAMS:
        lam = factor * np.trace(x.T @ x) / x.shape[1]
        hat = x @ np.linalg.solve(x.T @ x + lam * np.eye(x.shape[1]), x.T)
        free = len(x) - np.trace(hat)
        if free >= FREE * len(x) or factor == largest:
            scores[lam] = np.square(left - hat @ left).sum() / free**2
    return min(scores, key=lambda lam: scores[lam])
