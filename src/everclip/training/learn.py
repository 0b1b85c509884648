"""Learn one task with any method; runs, updates and Python callers share this code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from everclip.data.images import ImageSet
from everclip.data.scenario import Task, seen
from everclip.distributed import collectives
from everclip.models.tunings import tuning_of
from everclip.training.context import Context
from everclip.training.extract import some, spread, unreadable
from everclip.training.optim import Update
from everclip.training.restore import freeze, grow
from everclip.training.step import step


def learn(context: Context, task: Task) -> None:
    """Train on a task, phase by phase, then choose its exemplars.

    Raises:
        RunError: the loss or what was learned is not finite, or no image can be read.
    """
    config, clip, method = context.plan.config, context.clip, context.method
    memory, loader, journal = context.memory, context.loader, context.journal
    context.record.begin_stage()
    loader.prepare(task.train + memory.images(), views=int(any(method.passes.towers(task.index))))
    if collectives.size() > 1:  # preparing may have taken minutes longer here, and found an image broken
        loader.agree()
    new, old = loader.pixels.readable(task.train), memory.images()
    if not len(new):
        raise unreadable(task)
    images, current = new + old, np.arange(len(new) + len(old)) < len(new)
    grow(context.plan, clip, task)
    tuning = tuning_of(config.tune, config.tuning.options)
    tuning.begin(clip)
    method.begin_task(clip, task, images)
    shown = method.trains_on(images)
    images, current = images.select(shown), current[shown]
    learner = method.learner(task)
    counts = {"mixed": len(images), "new": int(current.sum()), "memory": int((~current).sum())}
    phases = [(phase, context.plan.steps(phase, counts[phase.data])) for phase in learner.phases(task)]
    every = sum(steps for _, steps in phases)
    for index, (phase, steps) in enumerate(phases):
        if steps == 0:
            continue
        freeze(context.plan, clip)
        journal.enter(index)
        phase = replace(phase, steps=steps)
        learner.begin_phase(clip, phase)
        shard = config.distributed.shard and collectives.size() > 1
        update = Update(clip, learner, phase, config.train, steps, shard)
        context.record.begin_phase(sum(parameter.numel() for parameter in update.parameters))
        done = journal.resume(update, index, steps)
        context.progress.start(
            f"{task.name} of {len(context.plan.tasks)}: {phase.name}", steps, done, steps / every
        )
        for batch in loader.batches(images, current, phase, task.index, index, steps, done):
            step(context, update, batch, phase, task)
            journal.step(update, index, batch.number + 1)
        update.close()
    tuning.end(clip)
    new = loader.pixels.readable(new)
    # Training may not have seen every image: this reads the others, and finds the broken ones among them.
    features = _features(context, new) if memory.ranks else None
    if not len(new := loader.pixels.readable(new)):
        raise unreadable(task)
    known = len(seen(context.plan.tasks[: task.index + 1]))
    gone = memory.update(new, known, features, lambda images: _scores(context, images))
    method.drop((task.train + old).samples(gone))
    method.end_task(clip, task, some(loader.plain(new), task), loader.plain(memory.images()))
    loader.drop(gone)
    freeze(context.plan, clip)
    journal.finish(task.index)


def _features(context: Context, images: ImageSet) -> Float[np.ndarray, "n d"] | None:
    """Return the method's features of the images that can be read, for memory policies that choose by them; None if
    there are none."""
    clip = context.clip
    found = spread(context.loader, images, lambda batch: context.method.features(clip, batch.images))
    return None if found is None else found[0].double().numpy()


def _scores(context: Context, images: ImageSet) -> NDArray[np.float64]:
    """Return the method's scores, for the memory policy that draws by them; 0 for images that can no longer be read."""
    known = context.method.scores(context.clip, context.loader.plain(images))
    return np.array([known.get(sample, 0.0) for sample in images.ids.tolist()])
