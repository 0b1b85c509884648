"""Cross-entropy over new logits, herding and nearest mean of exemplars, restated in numpy on Gaussian features.

What is restated shares no code with the package; the methods, the memory and the optimizer are the real ones. The image
tower reads its features off the first pixels, so that they can be drawn at will.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everclip.config import MethodConfig, load_config
from everclip.data.images import ImageSet
from everclip.data.loader import Batch, Phase
from everclip.data.memory import Memory
from everclip.data.policies import build
from everclip.data.scenario import Task
from everclip.methods.base.registry import method_class
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.runs.resolve import resolve
from everclip.training.optim import Update
from tests.methods.plain import PROMPTS, STORE

WIDTH, EACH, SCALE = 16, 15, 100.0
TASKS = ((0, 3), (5, 1), (2, 4))
Rows = NDArray[np.float64]


class FirstPixels(nn.Module):
    """An image tower whose features are the first values of the first row."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :WIDTH]


@pytest.fixture
def clip(toy: str) -> Clip:
    clip = zoo.load(toy)
    clip.model.visual = FirstPixels()
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(SCALE))
    return clip


def gaussians(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures and labels, Gaussian around a mean for each class, ``EACH`` of each, class after class."""
    random = np.random.default_rng(seed)
    means = np.random.default_rng(0).normal(128, 30, size=(6, WIDTH))
    labels = np.repeat(np.arange(6), EACH)
    pictures = np.zeros((len(labels), 3, 32, 32), dtype=np.uint8)
    pictures[:, 0, 0, :WIDTH] = (means[labels] + random.normal(0, 12, (len(labels), WIDTH))).clip(0, 255)
    return pictures, labels


def features_of(pictures: NDArray[np.uint8]) -> Rows:
    """Unit-length features, from what the model's configuration says of colours."""
    values = (pictures[:, 0, 0, :WIDTH] / 255 - 0.5) / 0.3
    return values / np.linalg.norm(values, axis=1, keepdims=True)


PICTURES, LABELS = gaussians(1)
FEATURES = features_of(PICTURES)
TESTS = gaussians(2)[0]


def rows_of(classes: Sequence[int]) -> NDArray[np.int64]:
    return np.flatnonzero(np.isin(LABELS, classes))


def image_set(rows: NDArray[np.int64]) -> ImageSet:
    return ImageSet(STORE, rows, LABELS[rows], np.zeros_like(rows), rows)


def batch_of(rows: NDArray[np.int64], new: Sequence[int]) -> Batch:
    labels = torch.from_numpy(LABELS[rows])
    current = torch.from_numpy(np.isin(LABELS[rows], new))
    return Batch(torch.from_numpy(PICTURES[rows]), labels, labels * 0, torch.from_numpy(rows), current)


def made(name: str, **options: Any) -> Any:
    cls = method_class(name)
    config: MethodConfig = cls.Config.model_validate(options)
    return cls.create(config, PROMPTS)


def predictions(method: Any, clip: Clip, labels: Sequence[int]) -> list[int]:
    with torch.no_grad():
        scores = method.classifier(clip, tuple(labels))(clip.normalise(torch.from_numpy(TESTS)))
    return [labels[column] for column in scores.argmax(1).tolist()]


def adamw(parts: list[Rows], gradients: list[Rows], state: dict[Any, Any], rate: float, decay: float) -> None:
    """A step of AdamW (Loshchilov and Hutter 2019) on matrices with decay, and on vectors without."""
    state["t"] = t = state.get("t", 0) + 1
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        first, second = state.setdefault(number, (np.zeros_like(part), np.zeros_like(part)))
        first[:] = 0.9 * first + 0.1 * gradient
        second[:] = 0.999 * second + 0.001 * gradient**2
        if part.ndim > 1:
            part *= 1 - rate * decay
        part -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)


def new_logits_only(steps: int, rate: float, decay: float) -> tuple[Rows, Rows]:
    """Weights and biases of all classes in label order after the tasks, each learned on its own logits alone."""
    weight, bias = np.zeros((6, WIDTH)), np.zeros(6)
    known: list[int] = []
    for classes in TASKS:
        known += classes
        rows = rows_of(classes)
        x, y = FEATURES[rows], (LABELS[rows, None] == np.array(classes)).astype(float)
        w, b = weight[known], bias[known]
        state: dict[Any, Any] = {}
        for step in range(steps):
            logits = SCALE * x @ w[-2:].T + b[-2:]
            p = np.exp(logits - logits.max(1, keepdims=True))
            error = (p / p.sum(1, keepdims=True) - y) / len(x)
            gradients = [np.zeros_like(w), np.zeros_like(b)]
            gradients[0][-2:], gradients[1][-2:] = SCALE * error.T @ x, error.sum(0)
            adamw([w, b], gradients, state, rate * 0.5 * (1 + math.cos(math.pi * step / steps)), decay)
        weight[known], bias[known] = w, b
    return weight, bias


@pytest.mark.parametrize("name", ["finetune", "ewc"])
def test_cross_entropy_over_new_logits_only(name: str, clip: Clip) -> None:
    """Without exemplars, with zero rows and the default rate of heads."""
    train = resolve(load_config(["train.warmup=0", "train.clip_norm=none", "tune=head"])).train
    steps = 40
    options: dict[str, Any] = {"strength": 0.0} if name == "ewc" else {}
    method = made(name, head="linear", **options)
    for index, classes in enumerate(TASKS):
        rows = rows_of(classes)
        task = Task(index, f"task {index}", classes, image_set(rows), image_set(rows))
        method.grow(clip, task)
        method.begin_task(clip, task, task.train)
        update = Update(clip, method, Phase(), train, steps)
        on = batch_of(rows, classes)
        for _ in range(steps):
            update.step(method.loss(method.encode(clip, on, Phase()), on, Phase()), "here", [])
            method.after_step(clip)
        method.end_task(clip, task, [on], [])
    assert train.lr_head is not None
    assert train.weight_decay is not None
    weight, bias = new_logits_only(steps, train.lr_head, train.weight_decay)
    place = method.head.columns(torch.arange(6)).tolist()
    np.testing.assert_allclose(method.head.weight.detach().numpy()[place], weight, atol=2e-4)
    expected = (SCALE * features_of(TESTS) @ weight.T + bias).argmax(1)
    assert predictions(method, clip, list(range(6))) == expected.tolist()


def herded(rows: NDArray[np.int64], count: int) -> list[int]:
    """Rebuffi et al. 2017, algorithm 4, literally: the next one brings the mean of the chosen nearest to the mean."""
    mean = FEATURES[rows].sum(0) / len(rows)
    chosen: list[int] = []
    for _ in range(count):
        distances = {}
        for row in rows.tolist():
            if row not in chosen:
                together = FEATURES[[*chosen, row]].sum(0)
                distances[row] = float(((mean - together / (len(chosen) + 1)) ** 2).sum())
        chosen.append(min(distances, key=lambda row: distances[row]))
    return chosen


@pytest.mark.parametrize("budget", [6, 24, 90])
def test_herding_and_the_nearest_mean_of_exemplars(budget: int, clip: Clip) -> None:
    method = made("icarl")
    memory = Memory(budget, 0, image_set(rows_of([])), build("herding", {}))
    known: list[int] = []
    for index, classes in enumerate(TASKS):
        rows = rows_of(classes)
        task = Task(index, f"task {index}", classes, image_set(rows), image_set(rows))
        method.grow(clip, task)
        method.begin_task(clip, task, memory.images() + task.train)

        on = batch_of(task.train.ids, classes)
        with torch.no_grad():
            features = method.features(clip, clip.normalise(on.images)).double().numpy()
        known += classes
        memory.update(task.train, len(known), features)
        count = min(EACH, budget // len(known))
        kept = {label: herded(rows_of([label]), count) for label in known}
        assert sorted(memory.images().ids.tolist()) == sorted(row for some in kept.values() for row in some)
        on = batch_of(memory.images().ids, classes)
        method.end_task(clip, task, [batch_of(rows, classes)], [on])
        means = np.stack([FEATURES[kept[label]].mean(0) for label in known])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        distances = ((features_of(TESTS)[:, None] - means) ** 2).sum(2)
        assert predictions(method, clip, known) == [known[column] for column in distances.argmin(1).tolist()]
