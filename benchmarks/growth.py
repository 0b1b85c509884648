"""Whether costs grow with the tasks and the classes seen, other than those of the text head and the test set.

    python -m benchmarks.growth [--model ViT-B-32 | --model lite] [--rounds 9] [--batch 8] [--tasks 100]

One thread, the processor's seconds of the process, method gdro. Two measurements:

Tasks: a real run, checkpoints and tests included, of a tiny random CLIP on 100 domains of the same 10 classes, 8
pictures each, with 200 exemplars; so small a model hides no other cost. Ratios are of a step (16 pictures), a stage
(all that a task costs except its test) and the resident size: medians of tasks 91 to 100 over those of tasks 11 to 20.

Classes: a step of ``--model`` on the same ten classes, once as the first task, once after 9,990 others, each with an
exemplar and its state. The two are measured in turn; the ratio is the median over the rounds. The log's lines of class
weights are included as often as a stage has them.

Goals: a step within 3 %, a stage that costs O(new + memory), at most 2 % more memory. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from tests.toy import toy_clip

from benchmarks.jobs import machine
from benchmarks.step import spent, weights
from everclip.config import load_config
from everclip.data.loader import Batch, Phase
from everclip.models.tunings import tuning_of
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.system.signals import Stop
from everclip.training import activation_cache, loop
from everclip.training.checkpointer import Checkpointer
from everclip.training.context import Context
from everclip.training.evaluate import evaluate
from everclip.training.learn import learn
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.recorder import Recorder
from everclip.training.restore import grow, load_model
from everclip.training.step import step

NEW, CLASSES, EXEMPLARS, OTHERS, EPOCHS = 8, 10, 200, 9_990, 5
EARLY, LATE = slice(10, 20), slice(-10, None)


def domains(folder: Path, count: int) -> str:
    """``count`` domains of ten classes; all images are one file of noise."""
    folder.mkdir()
    first = noise(folder, 32)
    for domain in range(count):
        for label in range(CLASSES):
            where = folder / f"domain {domain:03d}" / f"thing {label}"
            where.mkdir(parents=True)
            for n in range(NEW):
                os.link(first, where / f"{n}.jpg")
    return f"data=domainfolder:{folder}"


def noise(folder: Path, side: int) -> Path:
    """A JPEG file of noise beside the folder of a data set, which does not include it."""
    file = folder.with_suffix(".noise")
    values = np.random.default_rng(0).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "JPEG")
    return file


def pictures(folder: Path, classes: Sequence[int], side: int) -> str:
    """A data set with as many training images of each class as ``classes`` says, and one to test; all are one file of
    noise."""
    folder.mkdir()
    first = noise(folder, side)
    for label, count in enumerate(classes):
        for part, number in (("train", count), ("test", 1)):
            where = folder / part / f"thing {label:05d}"
            where.mkdir(parents=True)
            for n in range(number):
                os.link(first, where / f"{n}.jpg")
    return f"data=imagefolder:{folder}"


class Steps(Progress):
    """Notes the processor's seconds between the steps of each task."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[list[float]] = []
        self._since = 0.0

    def start(self, name: str, total: int, done: int = 0, part: float = 1.0) -> None:
        super().start(name, total, done, part)
        self.tasks.append([])

    def step(self, note: str = "", count: int = 1) -> None:
        super().step(note, count)
        now = time.process_time()
        self.tasks[-1].append(now - self._since)
        self._since = now

    def say(self, line: str) -> None:
        """Nothing: a hundred tasks would say much."""


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def by_tasks(tasks: int, scratch: Path) -> dict[str, float]:
    """The real loop through many tasks."""
    words = [
        domains(scratch / "many", tasks),
        f"model=local-dir:{toy_clip(scratch)}",
        "scenario.kind=domain-incremental",
        f"memory.budget={EXEMPLARS}",
        "memory.policy=equal_task",
        "train.batch_size=16",
        "train.epochs=1",
        f"out={scratch / 'tasks'}",
        "device=cpu",
    ]
    steps, stages, sizes = Steps(), [], []
    with Run.open(resolve(load_config(words))) as run:
        context, checkpointer = loop._start(run, steps, Stop())  # pyright: ignore[reportPrivateUsage]
        clip, method, loader, every = context.clip, context.method, context.loader, context.plan.tasks
        for task in every:
            stages.append(spent(lambda task=task: learn(context, task)))
            scores = evaluate(lambda labels: method.classifier(clip, labels), every[: task.index + 2], loader)
            line = context.record.end_stage(task, scores, context.memory, method.state_bytes())
            loop._close_stage(context, checkpointer, task, line)  # pyright: ignore[reportPrivateUsage]
            sizes.append(resident())
    # the first entry is of reading the images, the first step of a task bears what comes before it; task 1 has no other
    each = [median(seconds[1:] or seconds) for seconds in steps.tasks[1:]]
    ratio = {
        "step_tasks": median(each[LATE]) / median(each[EARLY]),
        "stage_tasks": median(stages[LATE]) / median(stages[EARLY]),
        "memory_tasks": median(sizes[LATE]) / median(sizes[EARLY]),
    }
    print(f"a step {median(each[EARLY]) * 1000:.1f} ms, a stage {median(stages[EARLY]):.2f} s at first")
    return ratio


def stepping(words: list[str], model: str, folder: Path) -> Callable[[], None]:
    """A step on the last task's images of a run that has seen the tasks before it."""
    fixed = ["device=cpu", "method=gdro", f"model={model}", "scenario.order=given", "loader.workers=0"]
    run = Run.open(resolve(load_config([*fixed, *words, f"out={folder}"]))).__enter__()
    plan = Plan.of(run.config)
    clip = load_model(plan, model)
    loader = activation_cache.loader(plan, clip, run.path, Progress())
    *before, task = plan.tasks
    context = Context(plan, clip, plan.method, plan.empty_memory(), loader, Recorder(plan.tasks), Progress())
    context.journal = Checkpointer(run, context, Stop(), [])
    old = sum((other.train for other in before), task.train.select(np.zeros(len(task.train), dtype=bool)))
    tables = plan.method.tables()
    if len(old):
        tables["estimators"].set(old.ids, torch.zeros(len(old), 2))
        tables["group_losses"].set(np.unique(old.labels), torch.zeros(len(np.unique(old.labels)), 1))
    for other in plan.tasks:
        grow(plan, clip, other)
    tuning_of(run.config.tune).begin(clip)
    images = task.train + old
    plan.method.begin_task(clip, task, images)
    phase = Phase(data="new")
    steps = EPOCHS * loader.steps_per_epoch(len(images))
    update = Update(clip, plan.method, phase, run.config.train, steps)
    current = np.arange(len(images)) < len(task.train)
    batches: Iterator[Batch] = loader.batches(images, current, phase, task.index, 0, steps)

    return lambda: step(context, update, next(batches), phase, task)


def by_classes(model: str, rounds: int, batch: int, scratch: Path) -> dict[str, float]:
    """A step after ten classes, and after ten thousand."""
    spec, size = weights(model, scratch / "model"), f"train.batch_size={batch}"
    few = [pictures(scratch / "ten", [NEW] * 10, 64), "scenario.tasks=1", size]
    many = [
        pictures(scratch / "thousands", [1] * OTHERS + [NEW] * 10, 64),
        f"scenario.tasks=[{OTHERS}, 10]",
        size,
    ]
    first, later = stepping(few, spec, scratch / "few"), stepping(many, spec, scratch / "later")
    ratios = []
    for number in range(rounds + 1):
        seconds = spent(first)
        if number:
            ratios.append(spent(later) / seconds)
        else:
            later()
    return {"step_classes": median(ratios)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name, or lite")
    parser.add_argument("--rounds", type=int, default=9, help="0: tasks alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=100, help="at least 30; 0: classes alone")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = by_tasks(wanted.tasks, Path(folder)) if wanted.tasks else {}
        if wanted.rounds:
            found |= by_classes(wanted.model, wanted.rounds, wanted.batch, Path(folder))
    for name, value in found.items():
        print(f"{name}: {value:.3f}", flush=True)
    print(
        json.dumps(
            {name: round(value, 4) for name, value in found.items()} | vars(wanted) | {"machine": machine()}
        )
    )


if __name__ == "__main__":
    main()
