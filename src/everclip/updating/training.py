"""Train for an update: one task of the training loop, on new images and exemplars."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from everclip import methods
from everclip.config import Config
from everclip.data.images import Dataset, ImageSet
from everclip.data.loader import Loader
from everclip.data.memory import Memory
from everclip.data.pixels import Pixels
from everclip.data.prompts import Prompts
from everclip.data.scenario import Task
from everclip.models.catalogue import recommended
from everclip.models.clip import Clip
from everclip.runs.resolve import resolve
from everclip.system.progress import Progress
from everclip.training.context import Context
from everclip.training.learn import learn
from everclip.training.plan import Plan
from everclip.training.recorder import Recorder
from everclip.training.restore import grow
from everclip.updating.classifiers import Known
from everclip.updating.rule import Decision


@dataclass(frozen=True, eq=False)
class Lesson:
    """The classes and images to learn.

    Args:
        known: all classes, old and new; the last task's labels are those of ``new``.
        new, exemplars: images, on one store.
    """

    known: Known
    new: ImageSet
    exemplars: ImageSet
    pixels: Pixels
    seed: int


def config_of(known: Known, decision: Decision, seed: int, device: str) -> Config:
    """Return the config that an update trains with."""
    own = recommended(str(known.base["model"]), before=True)  # the shares were chosen relative to these
    rates = {key: own[key] * decision.lr_share for key in ("lr", "lr_text") if key in own}
    values = {
        "defaults": 1,
        **known.base,
        "device": device,
        "seed": seed,
        "method": {"name": decision.method},
        "train": {"steps": decision.steps, **rates},
    }
    return resolve(Config.model_validate(values))


def trained(start: Clip, lesson: Lesson, decision: Decision, progress: Progress) -> Clip:
    """Train a copy of ``start``.

    Raises:
        RunError: the loss is not finite, or no new image can be read.
    """
    clip, known = copy.deepcopy(start), lesson.known
    device = clip.device.type if clip.device.index is None else str(clip.device)
    config = config_of(known, decision, lesson.seed, device)
    nothing = lesson.new.of_classes([])
    old = tuple(dict.fromkeys(label for task in known.tasks[:-1] for label in task.labels))
    tasks = [Task(0, "the known classes", old, nothing, nothing)] if old else []
    now = Task(len(tasks), "this update", tuple(known.tasks[-1].labels), lesson.new, nothing)
    tasks.append(now)
    data = Dataset("an update", known.names, ("",), nothing, nothing, known.templates)
    prompts = Prompts(known.names, known.templates, config.train.captions)
    plan = Plan(config, data, tasks, prompts, methods.build(config, prompts))
    plan.method.to(clip.device)
    loader = Loader(lesson.pixels, config.train.batch_size, config.train.augment, lesson.seed)
    memory = Memory("all", lesson.seed, lesson.exemplars)
    for task in tasks[:-1]:
        grow(plan, clip, task)
    learn(Context(plan, clip, plan.method, memory, loader, Recorder(tasks), progress), now)
    return clip
