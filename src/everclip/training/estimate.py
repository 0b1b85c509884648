"""Estimate what a run will compute and hold, before it starts: images through the towers, operations, hours, bytes.

Training on an image or a prompt counts as three forward passes: one forward, two for the backward pass. A method's
``passes`` say what it asks of the towers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from everclip import plugins
from everclip.config import Config
from everclip.data import scenarios
from everclip.methods.base.cost import Passes, Text
from everclip.models.catalogue import Costs, costs
from everclip.models.tunings import tuning_of


@dataclass(frozen=True)
class Sizes:
    """The tasks of a run in numbers.

    Args:
        train, test: images of each task.
        seen: classes seen after each task.
        templates: prompts of a class.
        captions: number of each task's test captions, for data with captions; such data have no classes to encode.
        budget: exemplars that a plan keeps; None: as the config says.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    seen: tuple[int, ...]
    templates: int = 1
    captions: tuple[int, ...] = ()
    budget: int | Literal["all"] | None = None

    def merged(self) -> Sizes:
        """Return all tasks as one."""
        captions = (sum(self.captions),) if self.captions else ()
        return Sizes((sum(self.train),), (sum(self.test),), self.seen[-1:], self.templates, captions)

    def tested(self, tasks: int) -> int:
        """Return the number of prompts in a test on the first tasks."""
        return sum(self.captions[:tasks]) if self.captions else self.seen[tasks - 1] * self.templates

    def texts(self, stage: int, batch: int) -> int:
        """Return the number of classes seen with a task or, for captions, of images in a batch."""
        return batch if self.captions else self.seen[stage]


@dataclass(frozen=True)
class Work:
    """Images and prompts through the towers, ``trained`` ones with a backward pass; optimizer steps.

    Args:
        memory: largest number of exemplars.
        once: pictures that pass through the image tower's frozen part, where its output is kept.
    """

    trained: float = 0.0
    forward: float = 0.0
    trained_prompts: float = 0.0
    prompts: float = 0.0
    steps: int = 0
    memory: int = 0
    once: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.trained + other.trained,
            self.forward + other.forward,
            self.trained_prompts + other.trained_prompts,
            self.prompts + other.prompts,
            self.steps + other.steps,
            max(self.memory, other.memory),
            self.once + other.once,
        )

    def passes(self, costs: Costs, config: Config | None = None) -> tuple[float, float]:
        """Return how many forward passes of the image tower, and of the text tower, all of it counts as.

        Args:
            config: says what of the towers trains, and what is kept of the rest; default: all trains.
        """
        if config is None:
            return 3.0 * self.trained + self.forward, 3.0 * self.trained_prompts + self.prompts
        tuning, above = tuning_of(config.tune, config.tuning.options), _above(config, costs)
        image, text = tuning.fractions(costs)
        if above is None:  # a frozen part below the trained one costs one pass each time
            rest = (1 - image) * self.trained + self.forward
        else:
            rest = above * self.forward + self.frozen(costs, config)
        whole = tuning.passes  # a frozen text tower gives the same each time
        return image * whole * self.trained + rest, text * whole * self.trained_prompts + self.prompts

    def frozen(self, costs: Costs, config: Config) -> float:
        """Return those of the image tower's ``passes`` that compute the kept output of its frozen part."""
        above = _above(config, costs)
        return 0.0 if above is None else (1 - above) * self.once

    def operations(self, costs: Costs, config: Config | None = None) -> float:
        """Return operations in all; ``config`` as for ``passes``."""
        images, prompts = self.passes(costs, config)
        return costs.image_flops * images + costs.text_flops * prompts


def _above(config: Config, costs: Costs) -> float | None:
    """Return the fraction of the image tower above its kept part; None where nothing is kept. Imports torch."""
    from everclip import methods
    from everclip.training.activation_cache import blocks_above

    blocks = blocks_above(config, methods.method_of(config))
    return None if blocks is None else min(1.0, blocks / costs.blocks[0])


def _passes(config: Config) -> tuple[Passes, dict[str, Any]]:
    """Return what the config's method asks of the towers, and its options. Imports torch."""
    from everclip import methods

    name, options = inner(config)
    method = type(config.method)(name=name, **options)
    return methods.method_of(config.model_copy(update={"method": method})).passes, options


def counted(config: Config) -> bool:
    """Return whether the config's method says what it asks of the towers; else it counts as one pass per image."""
    from everclip.methods.base.method import Method

    return _passes(config)[0] is not Method.passes


def inner(config: Config) -> tuple[str, dict[str, Any]]:
    """Return name and options of the method that computes: for a wrapper (joint, wise_ft) those of the wrapped
    method."""
    name, options = config.method.name, config.method.options
    while options.get("loss") in plugins.names("methods"):
        name, options = options["loss"], options.get("options", {})
    return name, options


def exemplars(config: Config) -> tuple[int | Literal["all"], bool]:
    """Return how many exemplars a resolved config keeps (of each class, with ``memory.per_class``), and whether its
    method learns all tasks at once. Imports torch.

    Raises:
        UserError: the method or its options are wrong.
    """
    from everclip import methods

    method = methods.method_of(config)
    keeps = methods.memory_policy(config, method).keeps
    if not method.capabilities.uses_memory or method.capabilities.one_task or keeps == "none":
        return 0, method.capabilities.one_task
    return ("all" if keeps == "all" else config.memory.size(1)), False


def work(config: Config, sizes: Sizes) -> Work:
    """Count what a resolved config computes on tasks of these sizes. Raises UserError where its method is wrong."""
    images, read = sum(sizes.test), _passes(config)[0].read(0)
    total = Work(
        forward=images, prompts=sizes.tested(len(sizes.seen)), once=images * read
    )  # the pretrained model
    for learned, tested in stages(config, sizes):
        total += learned + tested
    return total


def stages(config: Config, sizes: Sizes) -> list[tuple[Work, Work]]:
    """Count what learning each task computes, and the test after it; raises like ``work``."""
    from everclip.methods.base.registry import method_class

    asked, at_once = exemplars(config)
    asked = asked if sizes.budget is None else sizes.budget
    sizes = sizes.merged() if at_once else sizes
    passes, options = _passes(config)
    adapt, follows = options.get("adapt", "none"), options.get("follow_from")
    every = scenarios.build(config.scenario).task_id is not None
    found: list[tuple[Work, Work]] = []
    count, before = len(sizes.train), 0
    for stage in range(count):
        known = sizes.seen[stage - 1] if stage else 0
        each = 0 if asked == "all" else asked if config.memory.per_class else asked // max(1, known)
        kept = before if asked == "all" else min(before, each * known)
        counts = sizes.train[stage], kept, sizes.texts(stage, config.train.batch_size)
        learned = _training(config, passes, options, stage, counts)
        if adapt != "none" and (not stage or (isinstance(follows, int) and kept >= follows * known)):
            lent = method_class(adapt).passes, options.get("adapt_options", {})
            learned += _training(config, *lent, stage, counts)
        before += sizes.train[stage]
        ahead = count if every else min(stage + 1 + config.evaluate.ahead, count)
        tested = sum(sizes.test[:ahead])
        prompts = sizes.tested(ahead) if _text(passes, options) != "none" else 0
        found.append((learned, Work(forward=tested * passes.read(stage), prompts=prompts)))
    return found


def shares(config: Config, sizes: Sizes) -> list[tuple[float, float]]:
    """Return the operations of ``stages``; for an unknown model its passes, as if both towers took equally long."""
    model = costs(config.model, config.image_size) or Costs(1, 1, 1, 1, (0, 0))
    return [
        (learned.operations(model, config), tested.operations(model, config))
        for learned, tested in stages(config, sizes)
    ]


def _text(passes: Passes, options: dict[str, Any]) -> Text:
    return "none" if options.get("head") == "linear" else passes.text


def _training(
    config: Config, passes: Passes, options: dict[str, Any], stage: int, counts: tuple[int, int, int]
) -> Work:
    """Return the work of one task: ``counts`` are its new images, exemplars, and classes seen with it."""
    new, kept, seen = counts
    train = config.train
    with_gradient, without = passes.towers(stage)
    plain = sum(passes.after)
    after = Work(trained=new * passes.after[0], forward=new * passes.after[1], memory=kept, once=new * plain)
    if not with_gradient:
        return after
    steps = train.steps or (train.epochs or 1) * math.ceil((new + kept) / train.batch_size)
    images = steps * train.batch_size if train.steps else (train.epochs or 1) * (new + kept)
    text, classes = _text(passes, options), seen
    present = text == "batch" or options.get("classes") == "present"
    if present and not kept and not scenarios.scenario_class(config.scenario.kind).every_class:
        classes = max(1, seen // (stage + 1))  # roughly the task's own
    prompts = 0 if text == "none" else steps * (classes if text == "seen" else min(classes, train.batch_size))
    passes_of_probe = options.get("probe_epochs", 0)
    probe = (passes_of_probe if isinstance(passes_of_probe, int) else 1) * (new + kept)
    # a head that is learned anew reads all extractors
    if stage and options.get("balance") == "retrain":
        probe += (new + kept) * passes.read(stage)
    views = min(config.cache.views, passes.views * images / (new + kept))
    once = new * views if config.cache.views > 1 or not plain else 0  # the one view is the plain picture
    return after + Work(images * with_gradient, images * without + probe, prompts, 0, steps, kept, once)


def published(config: Config) -> Sizes | None:
    """Return sizes of the official data set that a config names, from its published counts; None for any other data."""
    from everclip import data
    from everclip.data import templates

    official = data.source_class(config.data)[0].official
    if official is None:
        return None
    name = config.data.partition(":")[0]
    prompts = len(config.templates) if isinstance(config.templates, list) else 1
    if not isinstance(config.templates, list) and (config.templates or name) in templates.names():
        prompts = len(templates.shipped(config.templates or name))
    scenario, domains = scenarios.build(config.scenario), list(official.domains.values())
    train, seen = scenario.sizes(official.train, official.classes, [pair[0] for pair in domains])
    test, _ = scenario.sizes(official.test, official.classes, [pair[1] for pair in domains])
    return Sizes(tuple(train), tuple(test), tuple(seen), prompts)


def duration(seconds: float) -> str:
    """Return a duration in words, rounded to what an estimate can say."""
    if seconds < 90:
        return "about a minute" if seconds > 30 else "less than a minute"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 36000 else f"{seconds / 3600:,.0f} hours"


def amount(operations: float) -> str:
    """Return operations in words: ``40 PFLOP``."""
    return f"{operations / 1e15:,.0f} PFLOP" if operations >= 1e15 else f"{operations / 1e12:.2g} TFLOP"


# Bytes --------------------------------------------------------------------------------------------------------------

_WEIGHT = 4  # fp32


def device_bytes(config: Config, costs: Costs, sizes: Sizes, batch: int | None = None) -> float:
    """Return the memory of the device at the last task: weights, gradients, AdamW's two moments, frozen copies,
    activations.

    Args:
        batch: images per step; default: the config's.
    """
    passes, options = _passes(config)
    last = len(sizes.train) - 1
    with_gradient, _ = passes.towers(last)
    text = _text(passes, options)
    bf16 = config.train.precision == "bf16"
    image, prompt = tuning_of(config.tune, config.tuning.options).fractions(costs)
    trained = image * costs.image_parameters + (prompt * costs.text_parameters if text != "none" else 0)
    bytes_ = _WEIGHT * float(costs.parameters)
    if not with_gradient:
        return (
            bytes_ + _activations(costs.activations[0], bf16) / 6 * 128
        )  # one block of twelve at a time, no gradient
    bytes_ += trained * (3 * _WEIGHT + 2 * bf16) + passes.held(last) * costs.image_parameters * _WEIGHT
    bytes_ += passes.anchored * trained * _WEIGHT
    images = (batch or config.train.batch_size) * passes.views
    texts = sizes.texts(last, images)
    prompts = 0 if text == "none" else min(texts, images if text == "batch" else texts)
    kept = image * images * costs.activations[0] + prompt * prompts * costs.activations[1]
    return bytes_ + _activations(kept, bf16)


def _activations(numbers: float, bf16: bool) -> float:
    """Return bytes of numbers kept: in bf16 the residual and the norms' inputs stay fp32."""
    return numbers * (2.75 if bf16 else 4.0)


def disk_bytes(config: Config, costs: Costs, stages: int) -> float:
    """Return bytes that a run writes: checkpoints, one more than are kept while the next is written, and its pages.

    Between two tasks a checkpoint holds the weights and what the method keeps; within one, AdamW's two moments too.
    """
    passes, _ = _passes(config)
    weights = (1 + passes.anchored) * costs.parameters + passes.saved(stages - 1) * costs.image_parameters
    within = 0 if config.checkpoint.every == "task" else weights + 2 * costs.parameters
    return (config.checkpoint.keep + 1) * (_WEIGHT * float(weights + within) + passes.sums) + 50e6
