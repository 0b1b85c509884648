"""THE loop: every method, every scenario."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.data.scenario import Task, seen
from everclip.errors import RunError
from everclip.evaluate import evaluate
from everclip.lab import Lab
from everclip.methods._base import TextClassifier
from everclip.models import tuning
from everclip.models.clip import Clip
from everclip.optim import Update
from everclip.plan import Plan
from everclip.progress import Progress
from everclip.record import Record, environment
from everclip.restore import freeze, grow, load_model, restore
from everclip.run import Clock, Run
from everclip.step import step

log = logging.getLogger("everclip")


def train(run: Run, progress: Progress) -> dict[str, Any]:
    """Run a config from where its directory stands to its results, which are written and returned.

    Raises:
        UserError: the config asks for something that is not there.
        RunError: the loss is not finite, or no image can be read.
    """
    lab = _start(run, progress)
    progress.say(f"run directory: {run.path}")
    tasks, method, memory, loader, clip = lab.plan.tasks, lab.method, lab.memory, lab.loader, lab.clip
    for task in tasks[lab.record.stages :]:
        lab.record.begin_stage()
        new, old = loader.pixels.readable(task.train), memory.images()
        images, current = new + old, np.arange(len(new) + len(old)) < len(new)
        grow(lab.plan, clip, task)
        tuning.begin(clip, run.config.tune)
        method.begin_task(clip, task, images)
        for index, phase in enumerate(method.phases(task)):
            counts = {"mixed": len(images), "new": len(new), "memory": len(old)}
            steps = lab.plan.steps(phase, counts[phase.data])
            if steps == 0:
                continue
            method.begin_phase(clip, phase)
            update = Update(clip, method, phase, run.config.train, steps)
            lab.record.begin_phase(sum(parameter.numel() for parameter in update.parameters))
            progress.start(f"{task.name} of {len(tasks)}: {phase.name}", steps)
            for batch in loader.batches(images, current, phase, task.index, index, steps):
                step(lab, update, batch, phase, task)
        if not len(new := loader.pixels.readable(new)):
            raise _unreadable(task)
        tuning.end(clip)
        gone = memory.update(
            new,
            len(seen(tasks[: task.index + 1])),
            lambda images: _features(lab, images),
            lambda images: _scores(lab, images),
        )
        method.drop(gone)
        method.end_task(clip, task, loader.plain(new), loader.plain(memory.images()))
        freeze(lab.plan, clip)
        scores = evaluate(
            clip, lambda labels: method.classifier(clip, labels), tasks[: task.index + 2], loader
        )
        _close_stage(lab, task, lab.record.end_stage(task, scores, memory))
    if lab.record.scores is None:  # stopped between its last checkpoint and its results
        lab.record.scores = evaluate(clip, lambda labels: method.classifier(clip, labels), tasks, loader)
    results = lab.record.results(lab.plan, method, memory, loader.pixels)
    run.log("end", seconds=results["seconds"])
    lab.record.write(run, results)
    return results


def _start(run: Run, progress: Progress) -> Lab:
    """The lab at the run's newest checkpoint, or before its first task."""
    config, record_clock = run.config, Clock()
    plan = Plan.of(config)
    found = run.resume()
    clip = restore(plan, *found) if found else load_model(plan, config.model)
    parts = [part for task in plan.tasks for part in (task.train, task.test)]
    pixels = Pixels(
        plan.data.train.store,
        clip.eval_transform,
        clip.image_size,
        config.loader.cache_mb << 20,
        config.loader.workers,
    )
    progress.start("reading images", sum(map(len, parts)))
    pixels.preload(parts, lambda done: progress.step(count=done))
    loader = Loader(pixels, config.train.batch_size, config.train.augment, config.seed)
    method, memory, record = plan.method, plan.empty_memory(), Record(plan.tasks)
    lab = Lab(plan, clip, method, memory, loader, record, run, progress)
    if pixels.broken:
        log.warning("%d broken images are skipped; run.log names them", len(pixels.broken))
    record.clock = record_clock
    if found:
        pixels.mark_broken(found[1]["skipped"])
        memory.load_state_dict(
            found[1]["memory"], sum((t.train for t in plan.tasks[1:]), plan.tasks[0].train)
        )
        record.load_state_dict(found[1]["record"])
        progress.say(f"continued after {plan.tasks[record.stages - 1].name}")
        return lab
    with torch.inference_mode():
        weights = clip.class_embeddings(
            [plan.prompts.names[c] for c in seen(plan.tasks)], plan.prompts.templates
        )
    record.set_zero_shot(evaluate(clip, lambda labels: TextClassifier(clip, weights), plan.tasks, loader))
    if config.center and not clip.centered:
        clip.center_images(_mean_feature(clip, loader, plan.tasks[0]))
    run.write("environment.json", json.dumps(environment(), indent=2) + "\n")
    run.log("start", **record.start(plan))
    return lab


@torch.inference_mode()
def _features(lab: Lab, images: ImageSet) -> NDArray[np.float64]:
    """The method's features of readable images, for memory policies that choose by them."""
    clip = lab.clip
    rows = [lab.method.features(clip, clip.normalise(batch.images)) for batch in lab.loader.plain(images)]
    return torch.cat(rows).double().cpu().numpy()


def _scores(lab: Lab, images: ImageSet) -> NDArray[np.float64]:
    """The method's scores, for the memory policy that draws by them; 0 for images that can no longer be read."""
    known = lab.method.scores(lab.clip, lab.loader.plain(images))
    return np.array([known.get(sample, 0.0) for sample in images.ids.tolist()])


@torch.inference_mode()
def _mean_feature(clip: Clip, loader: Loader, task: Task) -> Float[Tensor, " d"]:
    """Mean of the unit-length features of a task's training images. Raises RunError where none can be read."""
    features = [clip.encode_image(clip.normalise(batch.images)) for batch in loader.plain(task.train)]
    if not features:
        raise _unreadable(task)
    return torch.cat(features).mean(0)


def _unreadable(task: Task) -> RunError:
    return RunError(f"not one training image of {task.name} can be read: see the skipped images in run.log")


def _close_stage(lab: Lab, task: Task, line: dict[str, Any]) -> None:
    """Log and save a finished stage, and say how it went."""
    lab.run.log("stage", **line)
    state = {
        "memory": lab.memory.state_dict(),
        "record": lab.record.state_dict(),
        "skipped": lab.loader.pixels.skipped(),
        "tasks": lab.plan.class_names(),
    }
    lab.run.checkpoint(task.index, lab.clip, lab.method, state)
    zero_shot = lab.record.zero_shot["after_stage"][task.index]
    lab.progress.say(
        f"{task.name}: {line['accuracy_after_stage']:6.1%} on all seen so far (zero-shot {zero_shot:.1%}),"
        f" memory {line['memory']['count']}, {line['seconds']:.0f} s"
    )
