"""A method led through tasks by hand, on small random pictures: what the loop does, with the steps in sight."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from everclip.data.loader import Batch, Phase
from everclip.data.scenario import Task
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.restore import grow
from tests.running import configured
from tests.toy import MODEL_CFG

SIDE = 32
TIMM = {"timm_pool": "avg", "timm_proj": "linear", "image_size": SIDE}


def clip_with(folder: Path, **vision: Any) -> str:
    """Spec of a small model whose image tower is built from open_clip's ``vision_cfg``, with random weights."""
    config: dict[str, Any] = {**MODEL_CFG, "vision_cfg": vision}
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def batch(labels: list[int], current: list[bool] | None = None, seed: int = 0) -> Batch:
    """Random pictures of these classes."""
    random = torch.Generator().manual_seed(seed)
    count = len(labels)
    return Batch(
        torch.randint(0, 255, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=random),
        torch.tensor(labels),
        torch.zeros(count, dtype=torch.int64),
        torch.arange(count),
        torch.tensor(current if current is not None else [True] * count),
    )


@dataclass
class Course:
    """A plan's method and model, and the task they are in."""

    plan: Plan
    clip: Clip
    seen: list[int] = field(default_factory=list)
    learner: Any = None

    @classmethod
    def of(cls, *tokens: str) -> Course:
        """Before the first task of a config, which names data, model and method."""
        plan = Plan.of(configured(*tokens))
        return cls(plan, zoo.load(plan.config.model))

    @property
    def method(self) -> Any:
        return self.plan.method

    def enter(self, index: int, memory: bool = True) -> Task:
        """Grow for a task and begin it, with all earlier images as exemplars, or none."""
        task = self.plan.tasks[index]
        grow(self.plan, self.clip, task)
        parts = [earlier.train for earlier in self.plan.tasks[:index] if memory]
        self.method.begin_task(self.clip, task, sum(parts, task.train))
        self.learner = self.method.learner(task)
        return task

    def sample(self, task: Task) -> Batch:
        """Pictures of the task's classes and, as if from a memory, of those seen before."""
        old = [label for label in self.seen if label not in task.classes]
        labels = [*task.classes, *old] * 2
        return batch(labels, [label in task.classes for label in labels])

    def update(self, phase: Phase, steps: int = 10) -> Update:
        """Begin a phase, and make its optimizer."""
        self.learner.begin_phase(self.clip, phase)
        rates = ("train.lr=1e-3", "train.lr_text=1e-3", "train.warmup=0")
        return Update(self.clip, self.learner, phase, configured(*rates).train, steps)

    def step(self, update: Update, on: Batch, phase: Phase) -> dict[str, float]:
        """One optimizer step; the terms of the loss before it."""
        terms = self.learner.loss(self.learner.encode(self.clip, on, phase), on, phase)
        update.step(terms, "here", [])
        return {name: term.item() for name, term in terms.items()}

    def phase(self, task: Task, phase: Phase, steps: int = 2) -> None:
        update = self.update(phase, steps)
        for _ in range(steps):
            self.step(update, self.sample(task), phase)

    def leave(self, task: Task, memory: bool = True) -> None:
        """End a task, with as many exemplars as images, or none."""
        on = self.sample(task)
        self.seen += [label for label in task.classes if label not in self.seen]
        self.method.end_task(self.clip, task, [on], [on] if memory else [])

    def learn(self, *indices: int) -> Course:
        """Go through whole tasks."""
        for index in indices:
            task = self.enter(index)
            for phase in self.learner.phases(task):
                self.phase(task, phase)
            self.leave(task)
        return self

    def images(self) -> Tensor:
        """Normalised pictures to look at."""
        return self.clip.normalise(batch([0] * 4, seed=1).images)

    def scores(self, *labels: int) -> Tensor:
        with torch.no_grad():
            return self.method.classifier(self.clip, labels)(self.images())


def outputs(clip: Clip, towers: nn.ModuleList, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [clip.encode_image(images, tower) for tower in towers]


def count(*modules: nn.Module) -> int:
    """Parameters in all."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def state(module: nn.Module) -> dict[str, Tensor]:
    """Its tensors as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(head: Any, labels: list[int]) -> Tensor:
    """A head's rows of some labels."""
    return head.weight.detach()[head.columns(torch.tensor(labels))]
