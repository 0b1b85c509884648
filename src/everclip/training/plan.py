"""Plan a run before any model is loaded: data, tasks, method, memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from everclip import data, methods, trackers
from everclip.config import Config
from everclip.data import policies, scenarios
from everclip.data.captions import Captions
from everclip.data.images import Dataset, FileStore, ImageSet
from everclip.data.loader import check_augment
from everclip.data.memory import Memory
from everclip.data.prompts import Prompts
from everclip.data.scenario import Task, merge, seen
from everclip.data.scenarios import Scenario
from everclip.distributed import collectives
from everclip.errors import UserError
from everclip.methods.base.method import Method, Phase
from everclip.models import zoo
from everclip.models.tunings import tuning_of
from everclip.runs import card as cards
from everclip.runs.card import Card, CardTask
from everclip.training.estimate import Sizes

log = logging.getLogger("everclip")

# 64 MiB of results are read. Of T tasks they have T² / 2 accuracies of 26 bytes and as many nulls of 12, which is
# 59 MiB. Where tasks to come are tested, T² accuracies of 28 bytes are added: 45 MiB in all. With captions,
# T² / 2 recalls of 540 bytes are added: 44 MiB in all.
MOST_TASKS, MOST_DOMAINS, MOST_CAPTIONED = 1800, 1000, 400
"""Tasks of a run, of one that tests tasks to come, and of one with captions."""
SMOKE_TASKS, SMOKE_IMAGES, SMOKE_STEPS = 2, 32, 2
"""A trial run: number of tasks, of images of each part of a task, and of steps per phase."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A resolved config made concrete. ``method`` is new, as before the first task."""

    config: Config
    data: Dataset
    tasks: list[Task]
    prompts: Prompts
    method: Method

    @classmethod
    def of(cls, config: Config, source: Dataset | None = None) -> Plan:
        """Return the plan of a config.

        Args:
            source: its data set, where that has been read before.

        Raises:
            UserError: the data, the scenario or the method's options are wrong.
        """
        validation = config.scenario.validation
        scenario = scenarios.build(config.scenario)
        source = source or data.of(config)
        tasks = scenarios.cut(scenario, source, config.seed)
        prompts = Prompts(source.class_names, source.templates, config.train.captions)
        method = methods.build(config, prompts)
        if validation is not None:  # of the images that the scenario keeps: those are what a run learns
            tasks = [_holding_out(task, validation) for task in tasks[: config.scenario.validation_tasks]]
        if config.smoke:
            tasks = [_trim(task) for task in tasks[:SMOKE_TASKS]]
        if method.capabilities.one_task:
            tasks = merge(tasks)
        plan = cls(config, source, tasks, prompts, method)
        # decided as for a whole run, in tuning too, where the budget is scaled
        budget, fewest = plan.budget(whole=True), method.capabilities.fewest
        # a class's share only shrinks with the classes seen; for methods that need 1, ``_check`` warns instead
        if fewest > 1 and budget != "all" and budget < fewest * len(tasks[0].classes):
            method.can(uses_memory=False)
        _check(plan)
        return plan

    @property
    def scenario(self) -> Scenario:
        """The scenario that cut the tasks."""
        return scenarios.build(self.config.scenario)

    def class_names(self) -> list[list[str]]:
        """Return names of each task's classes, and a hash of captions, which must not change when a run continues."""
        names = [[self.prompts.names[label] for label in task.classes] for task in self.tasks]
        said = self.data.train.captions
        return names if said is None else [*names, [said.digest()]]

    def sizes(self) -> Sizes:
        """Return the tasks in numbers."""
        return Sizes(
            tuple(len(task.train) for task in self.tasks),
            tuple(len(task.test) for task in self.tasks),
            tuple(len(seen(self.tasks[: task.index + 1])) for task in self.tasks),
            len(self.prompts.templates),
            self._captions(),
            None if self.config.memory.per_class else self.budget(),
        )

    def _captions(self) -> tuple[int, ...]:
        """Return the number of captions of each task's test images; empty for data without captions."""
        tests = [task.test for task in self.tasks]
        return tuple(int(part.captions.count(part.rows).sum()) for part in tests if part.captions is not None)

    def budget(self, whole: bool = False) -> int | Literal["all"]:
        """Return how many exemplars to keep: none where the method has no use for them.

        Tuning sees only some of the classes, so it gets that fraction of the budget: a class then keeps as many
        exemplars as it will when all classes are seen.

        Args:
            whole: whether to return all that the config asks for, in tuning too.
        """
        can, keeps = self.method.capabilities, methods.memory_policy(self.config, self.method).keeps
        if not can.uses_memory or can.one_task or keeps == "none":
            return 0
        if keeps == "all":
            return "all"
        budget, classes = self.config.memory.budget, len(seen(self.tasks))
        if whole or not isinstance(budget, int) or self.config.scenario.validation is None:
            return self.config.memory.size(classes)
        return budget * classes // len(self.data.class_names)

    def empty_memory(self) -> Memory:
        """Return the memory before the first task.

        Where everything or nothing is kept, the method's own policy ranks the images, as with ``memory.budget`` all or
        0, so that a fork of the run can choose by these ranks.
        """
        nothing = self.data.train.select(np.zeros(0, dtype=np.int64))
        policy = methods.memory_policy(self.config, self.method)
        if policy.keeps != "part":
            policy = policies.build(self.method.capabilities.memory_policy, {})
        budget = self.budget()
        per_class = None if budget in (0, "all") else self.config.memory.per_class
        return Memory(budget, self.config.seed, nothing, policy, per_class)

    def steps(self, phase: Phase, images: int) -> int:
        """Return optimizer steps of a phase on this many images."""
        if images == 0:
            return 0
        train = self.config.train
        if self.config.smoke:
            return SMOKE_STEPS
        if train.steps is not None and phase.epochs is None:
            return train.steps
        epochs = phase.epochs or train.epochs
        assert epochs is not None
        return epochs * -(-images // train.batch_size)


def check_names(config: Config) -> None:
    """Refuse an unknown model or tracker, as the run itself would. Raises UserError."""
    zoo.check(config.model)
    trackers.start(config, Path(config.out or "runs"))


def _holding_out(task: Task, share: float) -> Task:
    """Return the task with part of its training images in place of its test images; ``share`` as in ``apart``."""
    train, test = task.train.apart(share, "validation")
    return replace(task, train=train, test=test)


def _trim(task: Task) -> Task:
    """Return the task with a few images of each part, spread over its classes."""

    def few(labels: np.ndarray) -> np.ndarray:
        order = np.argsort(labels, kind="stable")
        return np.sort(order[np.linspace(0, len(order) - 1, min(SMOKE_IMAGES, len(order))).astype(np.int64)])

    return replace(
        task, train=task.train.select(few(task.train.labels)), test=task.test.select(few(task.test.labels))
    )


def _check(plan: Plan) -> None:
    """Refuse tasks that cannot be learned or tested; warn of what is legal but probably not meant."""
    config, tasks, names = plan.config, plan.tasks, plan.data.class_names
    one_task, text = plan.method.capabilities.one_task, bool(plan.prompts.templates)
    lacking = methods.lacking(config, plan.method) or plan.scenario.lacking(config, one_task, text)
    if not lacking and plan.data.captioned:
        lacking = methods.unpaired(config, plan.method)
    if lacking:
        raise UserError(lacking)
    most = MOST_DOMAINS if plan.scenario.task_id else MOST_TASKS
    most = MOST_CAPTIONED if plan.data.captioned else most
    if len(tasks) > most:
        raise UserError(
            f"{len(tasks):,} tasks give more results than can be read again: use at most {most:,}, with a"
            " smaller scenario.tasks or a larger scenario.every"
        )
    classes, budget = seen(tasks), plan.budget()
    if config.memory.per_class is None and budget != "all" and 0 < budget < len(classes):
        log.warning(
            "memory.budget=%d is below the %d classes: once more than %d classes are seen, no class keeps"
            " an exemplar; use at least %d%s",
            *(budget, len(classes)) * 2,
            "" if plan.method.capabilities.needs_exemplars else ", or 0",
        )
    for task in tasks:
        new = set(task.classes).difference(seen(tasks[: task.index]))
        for part, images in (("training", task.train), ("test", task.test)):
            if not len(images) and (part == "training" or new):
                if part == "test" and config.scenario.validation is not None:
                    raise UserError(
                        f"{task.name} has one training image of each class, so that scenario.validation can hold out"
                        f" none: {f'use scenario.validation_tasks={task.index}' if task.index else 'add some'}"
                    )
                raise UserError(
                    f"{task.name} has no {part} images: add some, or use fewer tasks"
                    if plan.data.captioned
                    else f"{task.name} ({', '.join(names[label] for label in task.classes[:3])}, ...) has no {part}"
                    f" images: add some to its classes, or use fewer tasks"
                )
    tested = {int(label) for task in tasks for label in np.unique(task.test.labels)}
    untested = [names[label] for label in classes if label not in tested]
    if untested and not config.smoke:
        log.warning(
            "%d of %d classes have no test images, such as %s: their accuracy is not measured",
            *(len(untested), len(classes), f'"{untested[0]}"'),
        )


def card_of(plan: Plan, stages: int) -> Card:
    """Return the card of a plan whose first ``stages`` tasks have been learned, where the method classifies."""
    return Card(
        classes=list(plan.prompts.names),
        tasks=[CardTask(name=task.name, labels=list(task.classes)) for task in plan.tasks[:stages]],
        templates=list(plan.prompts.templates),
        classifier="method",
        settings=cards.settings(plan.config),
        pairs=plan.data.captioned,
    )


def plan_of(card: Card) -> Plan:
    """Return the plan that a card describes; its tasks have classes but no images."""
    config, nothing = card.config(), np.zeros(0, dtype=np.int64)
    said = Captions(()) if card.pairs else None
    none = ImageSet(FileStore(Path(), ()), nothing, nothing, nothing, nothing, said)
    data = Dataset("none", tuple(card.classes), ("",), none, none, tuple(card.templates))
    tasks = [Task(index, task.name, tuple(task.labels), none, none) for index, task in enumerate(card.tasks)]
    prompts = Prompts(data.class_names, data.templates, config.train.captions)
    return Plan(config, data, tasks, prompts, methods.build(config, prompts))


def check(plan: Plan) -> None:
    """Refuse what a run could not train, and what several processes cannot compute.

    Raises:
        UserError: the method, its options or the way it trains do not allow it.
    """
    config, method, count = plan.config, plan.method, collectives.size()
    name, first = config.method.name, plan.tasks[0]
    # with any other augmentation no method is asked for its phases before it begins
    if config.train.augment == "none" and any(p.views == 2 for p in method.learner(first).phases(first)):
        check_augment(config.train.augment)
    if count == 1:
        return
    if not method.capabilities.shares:
        raise UserError(
            f"method={name} with these options needs more from the towers than the batch, which {count}"
            f" processes cannot share: start one process, or use another method"
        )
    if config.distributed.gather == "light" and not method.capabilities.light:
        raise UserError(
            f"distributed.gather=light, but the loss of method={name} with these options has no light form:"
            " use distributed.gather=gradient"
        )
    if config.distributed.shard:
        _check_shards(config, method)
    if config.train.batch_size < count:
        raise UserError(
            f"train.batch_size={config.train.batch_size} is the total over {count} processes:"
            f" use at least {count}"
        )


def _check_shards(config: Config, method: Method) -> None:
    """Refuse what sharded towers cannot do. Raises UserError."""
    if not method.capabilities.shards:
        raise UserError(
            f"distributed.shard=true, but method={config.method.name} reads the towers' weights at each step:"
            " use distributed.shard=false, or another method"
        )
    if not tuning_of(config.tune, config.tuning.options).shards:
        raise UserError(
            f"distributed.shard=true, but tune={config.tune} trains a few weights, whose gradients and"
            f" moments are small: use distributed.shard=false"
        )
    light = config.distributed.gather == "light"
    if light or config.train.accumulate > 1:
        given = "distributed.gather=light" if light else "train.accumulate"
        raise UserError(
            f"distributed.shard=true needs the same number of tower passes in every process, which {given}"
            f" does not give:"
            " use distributed.gather=gradient train.accumulate=1, and train.checkpointing=true for less"
            " memory"
        )
