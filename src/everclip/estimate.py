"""What a run will compute and hold, before it starts: images through the towers, operations, hours, bytes.

An image or a prompt that is trained on counts three forward passes: one forward, two for the backward pass. What a
method asks of the towers beside that is in ``_EXTRA``; a method that is not in it counts as one pass an image,
with one caption for each class of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from everclip import plugins
from everclip.config import Config
from everclip.models.catalogue import Costs

UTILISATION = 0.2
"""Share of a card's dense peak that training is taken to reach. open_clip's published throughput of ViT-B/16 on an A100
is 11 to 13 % of it; 1,900 images a second on an H100 would be 20 %."""


class Card(NamedTuple):
    """A GPU: the vendor's dense peaks in operations a second."""

    bf16: float
    fp32: float


CARDS = {
    "H100": Card(989e12, 67e12),
    "A100": Card(312e12, 19.5e12),
    "A5000": Card(111.1e12, 27.8e12),
}


@dataclass(frozen=True)
class Sizes:
    """The tasks of a run in numbers.

    Args:
        train, test: images of each task.
        seen: classes seen after each task.
        templates: prompts of a class.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    seen: tuple[int, ...]
    templates: int = 1

    def merged(self) -> Sizes:
        """All tasks as one."""
        return Sizes((sum(self.train),), (sum(self.test),), self.seen[-1:], self.templates)


@dataclass(frozen=True)
class Work:
    """Images and prompts through the towers, ``trained`` ones with a backward pass; optimizer steps.

    Args:
        memory: largest number of exemplars.
    """

    trained: float = 0.0
    forward: float = 0.0
    trained_prompts: float = 0.0
    prompts: float = 0.0
    steps: int = 0
    memory: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.trained + other.trained,
            self.forward + other.forward,
            self.trained_prompts + other.trained_prompts,
            self.prompts + other.prompts,
            self.steps + other.steps,
            max(self.memory, other.memory),
        )

    def operations(self, costs: Costs) -> float:
        """In all."""
        images = costs.image_flops * (3 * self.trained + self.forward)
        return images + costs.text_flops * (3 * self.trained_prompts + self.prompts)


Text = Literal["batch", "seen", "none"]
_OWN_BLOCK = 1 / 12  # memo trains the last of twelve blocks, as by default


class Extra(NamedTuple):
    """What a method asks of the towers.

    Args:
        towers: stage -> (passes with gradient, passes without) an image and epoch.
        text: prompts of a step: the classes of the batch, all seen, none.
        after: (with gradient, without) a new image once the task is learned: a Fisher matrix, features to choose by.
        read: stage -> image towers that a prediction takes.
    """

    towers: Callable[[int], tuple[float, float]] = lambda stage: (1.0, 0.0)
    text: Text = "none"
    after: tuple[float, float] = (0.0, 0.0)
    read: Callable[[int], float] = lambda stage: 1.0


def _teacher(views: int) -> Callable[[int], tuple[float, float]]:
    """As many views through the model, and from the second task on through the one before."""
    return lambda stage: (float(views), float(views * (stage > 0)))


_STATISTICS = Extra(lambda stage: (0.0, 0.0), after=(0.0, 1.0))
_EXTRA = {
    "zero_shot": Extra(lambda stage: (0.0, 0.0), "seen"),
    **dict.fromkeys(("ncm", "ridge", "ranpac", "slda"), _STATISTICS),
    **dict.fromkeys(("clip", "gcl", "gdro"), Extra(text="batch")),
    **dict.fromkeys(("finetune", "dark_er"), Extra(text="seen")),
    "ewc": Extra(text="seen", after=(1.0, 0.0)),
    "lwf": Extra(_teacher(1), "seen"),
    "zscl": Extra(lambda stage: (2.0, 0.0), "seen"),
    "icarl": Extra(_teacher(1), after=(0.0, 1.0)),
    "cclis": Extra(_teacher(1), after=(0.0, 1.0)),
    "co2l": Extra(_teacher(2)),
    "cassle": Extra(_teacher(2)),
    "cmoa": Extra(),
    "foster": Extra(lambda stage: (2.0, 3.0) if stage else (1.0, 0.0), after=(0.0, 1.0)),
    "der_expand": Extra(lambda stage: (1.0, float(stage)), after=(0.0, 1.0), read=lambda stage: stage + 1.0),
    "memo": Extra(
        lambda stage: (_OWN_BLOCK, 1 - _OWN_BLOCK + stage * _OWN_BLOCK) if stage else (1.0, 0.0),
        after=(0.0, 1.0),
        read=lambda stage: 1 + stage * _OWN_BLOCK,
    ),
}


def known(method: str) -> bool:
    """Whether what a method asks of the towers is in the table."""
    return method in _EXTRA


def inner(config: Config) -> tuple[str, dict[str, Any]]:
    """Name and options of the method that computes: of one that wraps another (joint, wise_ft), that one's."""
    name, options = config.method.name, config.method.options
    while options.get("loss") in plugins.names("methods"):
        name, options = options["loss"], options.get("options", {})
    return name, options


def exemplars(config: Config) -> tuple[int | Literal["all"], bool]:
    """Exemplars that a resolved config keeps, and whether its method learns all tasks at once. Imports torch.

    Raises:
        UserError: the method or its options are wrong.
    """
    from everclip import methods
    from everclip.data.prompts import PHOTO, Prompts

    method = methods.build(config, Prompts(("a", "b"), (PHOTO,)))
    if not method.uses_memory or method.one_task or config.memory.policy == "none":
        return 0, method.one_task
    return ("all" if config.memory.policy == "all" else config.memory.budget), False


def work(config: Config, sizes: Sizes) -> Work:
    """What a resolved config computes on tasks of these sizes. Raises UserError where its method is wrong."""
    budget, at_once = exemplars(config)
    sizes = sizes.merged() if at_once else sizes
    name, options = inner(config)
    extra = _EXTRA.get(name, Extra(text="batch"))
    total = Work(forward=sum(sizes.test), prompts=sizes.seen[-1] * sizes.templates)  # the pretrained model
    stages, before = len(sizes.train), 0
    for stage in range(stages):
        kept = _kept(budget, before, sizes.seen[stage - 1]) if stage else 0
        total += _training(config, extra, options, stage, (sizes.train[stage], kept, sizes.seen[stage]))
        before += sizes.train[stage]
        ahead = min(stage + 2, stages)
        tested, classes = sum(sizes.test[:ahead]), sizes.seen[ahead - 1]
        prompts = classes * sizes.templates if _text(extra, options) != "none" else 0
        total += Work(forward=tested * extra.read(stage), prompts=prompts)
    return total


def _kept(budget: int | Literal["all"], images: int, seen: int) -> int:
    return images if budget == "all" else min(images, budget // max(1, seen) * seen)


def _text(extra: Extra, options: dict[str, Any]) -> Text:
    return "none" if options.get("head") == "linear" else extra.text


def _training(
    config: Config, extra: Extra, options: dict[str, Any], stage: int, counts: tuple[int, int, int]
) -> Work:
    """One task: ``counts`` are its new images, exemplars, and classes seen with it."""
    new, kept, seen = counts
    train = config.train
    with_gradient, without = extra.towers(stage)
    after = Work(trained=new * extra.after[0], forward=new * extra.after[1], memory=kept)
    if not with_gradient:
        return after
    steps = train.steps or (train.epochs or 1) * math.ceil((new + kept) / train.batch_size)
    images = steps * train.batch_size if train.steps else (train.epochs or 1) * (new + kept)
    text, classes = _text(extra, options), seen
    if text == "batch" and not kept and config.scenario.kind == "class-incremental":
        classes = max(1, seen // (stage + 1))  # the task's own, about
    prompts = 0 if text == "none" else steps * (classes if text == "seen" else min(classes, train.batch_size))
    probe = options.get("probe_epochs", 0) * (new + kept)
    return after + Work(images * with_gradient, images * without + probe, prompts, 0, steps, kept)


def published(config: Config) -> Sizes | None:
    """Sizes of the official data set that a config names, from its published counts; None for any other data."""
    from everclip import data
    from everclip.data import templates
    from everclip.data.scenario import task_sizes

    source, _ = data.source(config.data)
    official = vars(source).get("OFFICIAL")
    if official is None:
        return None
    name = config.data.partition(":")[0]
    prompts = len(config.templates) if isinstance(config.templates, list) else 1
    if not isinstance(config.templates, list) and (config.templates or name) in templates.names():
        prompts = len(templates.shipped(config.templates or name))
    if config.scenario.kind == "domain-incremental":
        pairs = list(official.domains.values())
        seen = (official.classes,) * len(pairs)
        return Sizes(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), seen, prompts)
    tasks = task_sizes(official.classes, config.scenario.tasks)
    return Sizes(
        tuple(round(official.train * size / official.classes) for size in tasks),
        tuple(round(official.test * size / official.classes) for size in tasks),
        tuple(accumulate(tasks)),
        prompts,
    )


def seconds(operations: float, card: str, precision: str = "bf16", cards: int = 1) -> float:
    """On cards of a kind, at ``UTILISATION`` of their peak."""
    peak = CARDS[card].bf16 if precision == "bf16" else CARDS[card].fp32
    return operations / (peak * UTILISATION * cards)


def duration(seconds: float) -> str:
    """In words, rounded to what an estimate can say."""
    if seconds < 90:
        return "about a minute" if seconds > 30 else "less than a minute"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 36000 else f"{seconds / 3600:,.0f} hours"


def amount(operations: float) -> str:
    """Operations in words: ``40 PFLOP``."""
    return f"{operations / 1e15:,.0f} PFLOP" if operations >= 1e15 else f"{operations / 1e12:.2g} TFLOP"


# Bytes --------------------------------------------------------------------------------------------------------------

_WEIGHT = 4  # fp32


def device_bytes(config: Config, costs: Costs, sizes: Sizes, batch: int | None = None) -> float:
    """Memory of the device at the last task: weights, gradients, AdamW's two moments, frozen copies, activations.

    Args:
        batch: images a step; default: the config's.
    """
    name, options = inner(config)
    extra = _EXTRA.get(name, Extra(text="batch"))
    last = len(sizes.train) - 1
    with_gradient, without = extra.towers(last)
    text = _text(extra, options)
    bf16 = config.train.precision == "bf16"
    trained = costs.image_parameters + (costs.text_parameters if text != "none" else 0)
    bytes_ = _WEIGHT * float(costs.parameters)
    if not with_gradient:
        return (
            bytes_ + _activations(costs.activations[0], bf16) / 6 * 128
        )  # one block of twelve at a time, no gradient
    frozen = {"der_expand": last, "foster": 2}.get(name, min(1.0, without))
    bytes_ += trained * (3 * _WEIGHT + 2 * bf16) + frozen * costs.image_parameters * _WEIGHT
    bytes_ += 2 * trained * _WEIGHT * (name == "ewc")
    images = (batch or config.train.batch_size) * max(
        1.0, with_gradient if name in ("co2l", "cassle") else 1.0
    )
    prompts = 0 if text == "none" else min(sizes.seen[-1], images if text == "batch" else sizes.seen[-1])
    kept = images * costs.activations[0] + prompts * costs.activations[1]
    return bytes_ + _activations(kept, bf16)


def _activations(numbers: float, bf16: bool) -> float:
    """Bytes of numbers kept: in bf16 the residual and the norms' inputs stay fp32."""
    return numbers * (2.75 if bf16 else 4.0)


def disk_bytes(config: Config, costs: Costs, stages: int) -> float:
    """Bytes that a run writes: checkpoints, one more than are kept while the next is written, and its pages.

    Between two tasks a checkpoint holds the weights and what the method keeps; within one, AdamW's two moments too.
    """
    name, _ = inner(config)
    towers = {"der_expand": stages - 1, "foster": 1}.get(name, 0) * costs.image_parameters
    if name == "ewc":
        towers += 2 * costs.parameters
    weights = costs.parameters + towers
    within = 0 if config.checkpoint.every == "task" else weights + 2 * costs.parameters
    return (config.checkpoint.keep + 1) * _WEIGHT * float(weights + within) + 50e6
