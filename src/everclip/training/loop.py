"""Run the one training loop: every method, every scenario."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from everclip._version import __version__
from everclip.data.loader import Loader
from everclip.data.scenario import Task, seen
from everclip.errors import UserError
from everclip.models.clip import Clip
from everclip.models.passes import Passes
from everclip.models.tunings import tuning_of
from everclip.runs.run import Clock, Run
from everclip.runs.words import several
from everclip.system.progress import Progress
from everclip.system.signals import Stop
from everclip.training import activation_cache, estimate, fork, frozen, noted, references, testing
from everclip.training.checkpointer import Checkpointer
from everclip.training.context import Context
from everclip.training.disk import check_room, room, writing
from everclip.training.environment import environment
from everclip.training.evaluate import evaluate_pretrained
from everclip.training.extract import Rows, spread, unreadable
from everclip.training.learn import learn
from everclip.training.plan import Plan, check
from everclip.training.recorder import Recorder
from everclip.training.restore import fitting, load_model, read, restore
from everclip.training.retrieve import retrieve, warn_of_long

log = logging.getLogger("everclip")


def train(run: Run, progress: Progress, stop: Stop | None = None) -> dict[str, Any]:
    """Run a config from its directory's state to the end; write and return its results.

    Args:
        stop: set by signals; default: never.

    Raises:
        Stopped: a signal came; the run is saved up to the last step, and the same call continues it.
        UserError: the config asks for something that is not available.
        RunError: the loss is not finite, no image can be read, or the disk is full.
    """
    with writing(run.path):
        context, checkpointer = _start(run, progress, stop or Stop())
        method, loader, record = context.method, context.loader, context.record
        tasks = context.plan.tasks
        shares = estimate.shares(context.plan.config, context.plan.sizes())
        progress.expect([work for pair in shares[record.stages :] for work in pair])
        for task in tasks[record.stages :]:
            if checkpointer.place.task == task.index:  # else it was stopped during its test
                log.info(
                    "%s begins: %d images of %d classes, %d exemplars",
                    *(task.name, len(task.train), len(task.classes), len(context.memory.images())),
                )
                with checkpointer.stop.held():
                    learn(context, task)
            progress.section()
            tested = testing.tested(context.plan, task.index)
            progress.start(f"{task.name} of {len(tasks)}: test", sum(len(one.test) for one in tested))
            scores = testing.scores(context, tested, task.index, progress.count)
            line = record.end_stage(task, scores, context.memory, method.state_bytes())
            _close_stage(context, checkpointer, task, line)
            progress.section()
        if record.scores is None:  # stopped between its last checkpoint and its results
            record.scores = testing.scores(context, tasks, len(tasks) - 1)
        results = record.results(context.plan, method, context.memory, loader, context.clip.device)
        run.log("end", stage=len(tasks) - 1, seconds=results["seconds"], **_last_step(context))
        record.write(run, results)
        log.info("finished: last %.1f %%, average %.1f %%", 100 * results["last"], 100 * results["average"])
    return results


def _start(run: Run, progress: Progress, stop: Stop) -> tuple[Context, Checkpointer]:
    """Return the context at the run's newest checkpoint, or before its first task."""
    config, record_clock = run.config, Clock()
    log.info("everclip %s, method %s, seed %d", __version__, config.method.name, config.seed)
    plan = Plan.of(config)
    check(plan)
    if config.fork is not None and run.writes and not run.store.places():
        run.store.newest()  # raises where all were damaged: forking again would overwrite what is left
        fork.begin(run, plan)
    trail = read(run)
    clip = restore(plan, trail[0]) if trail else load_model(plan, config.model)
    if clip.device.type == "cuda":  # an earlier run of this process may have needed more
        torch.cuda.reset_peak_memory_stats(clip.device)
    check_room(run.path, room(config, clip, len(plan.tasks)))
    images = noted.keep(run, plan, bool(trail), progress)
    parts = [part for task in plan.tasks for part in (task.train, task.test)]
    progress.say(f"data {plan.data.words()}")
    progress.say(f"run directory: {run.path}")
    loader = activation_cache.loader(plan, clip, run.path, progress)
    pixels = loader.pixels
    progress.start("reading images", sum(map(len, parts)))
    pixels.preload(parts, progress.count)
    method, memory, record = plan.method, plan.empty_memory(), Recorder(plan.tasks, images)
    context = Context(plan, clip, method, memory, loader, record, progress)
    checkpointer = context.journal = Checkpointer(run, context, stop, trail)
    if pixels.broken:
        log.warning("skipping %s: see run.log", several(len(pixels.broken), "broken image"))
    record.clock = record_clock
    if trail:
        saved = trail[0].state
        with fitting(trail[0].folder):
            pixels.mark_broken(saved["skipped"])
            memory.load_state_dict(
                saved["memory"], sum((t.train for t in plan.tasks[1:]), plan.tasks[0].train)
            )
            record.load_state_dict(saved["record"])
        progress.say(f"continued {checkpointer.place.words([task.name for task in plan.tasks])}")
        return context, checkpointer
    _check_works(plan, clip)
    tests: dict[int, Rows] = {}
    if plan.data.captioned:
        warn_of_long(clip, plan.data.train)
        progress.start("zero-shot test", sum(len(task.test) for task in plan.tasks))
        record.set_zero_shot(retrieve(clip, plan.tasks, loader, progress.count))
    elif plan.prompts.templates:
        with torch.inference_mode():
            weights = clip.class_embeddings(
                [plan.prompts.names[c] for c in seen(plan.tasks)], plan.prompts.templates
            )
        progress.start("zero-shot test", sum(len(task.test) for task in plan.tasks))
        scores, tests = evaluate_pretrained(clip, weights, plan.tasks, loader, progress.count)
        record.set_zero_shot(testing.among(scores, plan.tasks, plan.scenario.task_id))
    if config.center and not clip.centered:
        clip.center_images(_mean_feature(clip, loader, plan.tasks[0]))
        tests = {}  # features have changed
    _measure_frozen(context, tests)
    run.write("environment.json", json.dumps(environment(clip.device), indent=2) + "\n")
    run.log("start", **record.start(plan))
    checkpointer.finish(-1)
    return context, checkpointer


def _check_works(plan: Plan, clip: Clip) -> None:
    """Refuse what cannot work before the pretrained model is tested on everything. Raises UserError."""
    config, can = plan.config, plan.method.capabilities
    tuning_of(config.tune, config.tuning.options).check(clip)
    if config.center and not can.centers:
        raise UserError(
            f"method={config.method.name} with these options reads none of the features that center=true subtracts a"
            " mean from: use center=false"
        )
    if can.trains:
        Passes(clip, config.train)


def _measure_frozen(context: Context, tests: Mapping[int, Rows]) -> None:
    """Measure the second reference beside zero-shot if the config asks for it, and report it.

    Args:
        tests: features of the test images that are known already, by task.
    """
    plan, clock = context.plan, Clock()
    if not references.wanted(plan.config, plan.sizes()):
        return
    found = context.record.frozen = frozen.reference(
        context.clip, plan.prompts, plan.tasks, context.loader, tests
    )
    context.progress.say(
        f"frozen features without training: {found['frozen_features']:.1%} in the end"
        f" ({found['frozen_features_methods'][-1]}), {clock.seconds():.0f} s"
    )


def _mean_feature(clip: Clip, loader: Loader, task: Task) -> Float[Tensor, " d"]:
    """Return the mean of the unit-length features of a task's training images. Raises RunError where none can be
    read."""
    found = spread(loader, task.train, lambda batch: clip.encode_image(batch.images))
    if found is None:
        raise unreadable(task)
    return found[0].mean(0)


def _last_step(context: Context) -> dict[str, int]:
    """Return the number of the last step, if any, from which a tracker opened by a resumed run goes on."""
    steps = context.record.optimizer_steps
    return {"global_step": steps - 1} if steps else {}


def _close_stage(context: Context, checkpointer: Checkpointer, task: Task, line: dict[str, Any]) -> None:
    """Log a finished stage, note in its checkpoint that it was tested, and say how it went."""
    checkpointer.log("stage", **line, **_last_step(context))
    checkpointer.scored()
    bases = []
    if after := context.record.zero_shot["after_stage"]:
        bases.append(f"zero-shot {after[task.index]:.1%}")
    if after := context.record.frozen["frozen_features_after_stage"]:
        bases.append(f"frozen features {after[task.index]:.1%}")
    what = (
        "recall@1, each task among its own" if context.plan.data.captioned else "on all classes seen so far"
    )
    context.progress.say(
        f"{task.name}: {line['accuracy_after_stage']:6.1%} {what}"
        + (f" ({', '.join(bases)})" if bases else "")
        + f", memory {line['memory']['count']}, {line['seconds']:.0f} s"
    )
