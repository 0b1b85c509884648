"""Ten updates in a row: the automatic choice compared with each fixed one, joint training, ridge and plain fine-tuning.

    EVERCLIP_DATA=/folder/with/caltech50/and/pacs128 python -m benchmarks.updates

starts from `lite` without a class, teaches it five classes at a time (of PACS one domain at a time) with two exemplars
a class, and writes benchmarks/updates.md. About an hour of one core; a chain that is in benchmarks/updates.jsonl is
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import current, generation, imagenet_part, machine
from benchmarks.pacs_part import build as build_pacs
from everclip import data as sources
from everclip.data.gathered import gather
from everclip.data.images import Dataset, ImageSet
from everclip.data.pixels import Pixels
from everclip.data.scenario import Task, class_order
from everclip.inference import assess
from everclip.inference.model import Deployed
from everclip.models.clip import Clip
from everclip.runs.card import CardTask
from everclip.system.progress import Progress
from everclip.updating.candidates import NAMES
from everclip.updating.classifiers import Known, closed_form, features, scores, text_form
from everclip.updating.core import Options, spoken, update
from everclip.updating.rule import Decision
from everclip.updating.start import begin
from everclip.updating.training import Lesson, trained

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "updates.jsonl", HERE / "updates.md"
EXEMPLARS, SIZE, UPDATES, EACH = 2, 96, 10, 5
SETTINGS = ("pacs", "caltech50", "emoji")
REFERENCES = ("joint", "ridge on all images", "plain fine-tuning")
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Setting:
    """A data set in the order in which it comes: parts that teach, and parts that test."""

    name: str
    title: str
    steps: list[Task]
    data: Dataset

    def part(self, task: Task) -> Dataset:
        """What one update brings."""
        train = replace(task.train, domains=np.zeros_like(task.train.domains))
        return replace(self.data, train=train, test=task.test, domain_names=("",), held_out=False)


@cache
def setting(name: str, scratch: Path) -> Setting:
    """A setting by its name."""
    root = Path(os.environ["EVERCLIP_DATA"]).resolve()
    if name == "pacs":
        if not (scratch / "pacs_part").exists():
            build_pacs(root / "pacs128", scratch / "pacs_part")
        found = sources.load(f"domainfolder:{scratch / 'pacs_part'}", "domain-incremental", model="lite")
        every = tuple(range(len(found.class_names)))
        steps = [
            Task(i, domain, every, found.train.of_domain(i), found.test.of_domain(i))
            for i, domain in enumerate(found.domain_names)
        ]
        return Setting(name, "part of PACS, a domain an update, 7 classes", steps, found)
    spec = "emoji" if name == "emoji" else f"imagefolder:{root / name}"
    found = sources.load(spec, "class-incremental", model="lite")
    order = class_order(found.class_names, 1993)
    steps = []
    for i in range(UPDATES):
        labels = tuple(order[EACH * i : EACH * (i + 1)])
        steps.append(
            Task(i, f"{i + 1}", labels, found.train.of_classes(labels), found.test.of_classes(labels))
        )
    return Setting(name, f"{name}, {UPDATES} updates of {EACH} classes", steps, found)


class Quiet(Progress):
    """Says nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def step(self, note: str = "", count: int = 1) -> None:
        """Nothing."""


def chain(one: Setting, choice: str, scratch: Path) -> Json:
    """A chain of updates with one choice, or with the automatic one."""
    state = begin("lite", None, None, SIZE)
    tests = Tests(one, state.frozen)
    rows: list[Json] = []
    for task in one.steps:
        start = time.process_time()
        made = update(
            state, one.part(task), None, Options(choice, EXEMPLARS, 100.0, unmeasured=True), Quiet()
        )
        state, verdict = made.state, made.verdict
        assert state.model is not None
        rows.append(
            {
                "chosen": verdict["chosen"],
                "tasks": tests.measure(state.model, task.index),
                "checks": {c["name"]: round(c["accuracy"], 4) for c in verdict["candidates"]},
                "cpu_seconds": round(time.process_time() - start, 1),
            }
        )
        print(one.name, choice, task.name, rows[-1]["chosen"], rows[-1]["tasks"], file=sys.stderr, flush=True)
    return summary(one, choice, rows, state.encoder, tests, scratch)


class Tests:
    """The test images of all updates, decoded once."""

    def __init__(self, one: Setting, clip: Clip) -> None:
        names = [one.data.class_names[label] for task in one.steps for label in task.classes]
        self.names = list(dict.fromkeys(names))
        table = [self.names.index(n) if n in self.names else -1 for n in one.data.class_names]
        self.parts, _ = gather([task.test.relabel(table) for task in one.steps])
        self.pixels = Pixels(self.parts[0].store, clip.eval_transform, clip.image_size)

    def measure(self, model: Deployed, last: int) -> list[float]:
        """Accuracy on each update's test images so far, among all classes of ``model``."""
        labels = np.array([self.names.index(name) for name in model.names])
        found = []
        for part in self.parts[: last + 1]:
            predicted = labels[scores(model, part, self.pixels).argmax(1)]
            found.append(round(float((predicted == part.labels).mean()), 4))
        return found

    def sizes(self) -> list[int]:
        """Images of each part."""
        return [len(part) for part in self.parts]


def summary(one: Setting, choice: str, rows: list[Json], clip: Clip, tests: Tests, scratch: Path) -> Json:
    """The numbers of a chain: last accuracy over all test images, forgetting, and zero-shot retention."""
    sizes = np.array(tests.sizes())
    over = [float(np.average(row["tasks"], weights=sizes[: len(row["tasks"])])) for row in rows]
    last = rows[-1]["tasks"]
    lost = (
        [
            max(row["tasks"][j] for row in rows[:-1] if len(row["tasks"]) > j) - last[j]
            for j in range(len(last) - 1)
        ]
        if len(rows) > 1
        else []
    )
    return {
        "setting": one.name,
        "choice": choice,
        "last": round(over[-1], 4),
        "average": round(float(np.mean(over)), 4),
        "forgetting": round(float(np.mean(lost)), 4) if lost else None,
        "zero_shot": round(zero_shot(clip, scratch), 4),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "machine": machine(),
        "updates": rows,
    }


def zero_shot(clip: Clip, scratch: Path) -> float:
    """Accuracy of an encoder on one picture of each of ImageNet's classes."""
    return assess.text_alone(clip, imagenet(scratch)).accuracy


@cache
def imagenet(scratch: Path) -> Dataset:
    """One picture of each class."""
    folder = imagenet_part(Path(os.environ["EVERCLIP_DATA"]).resolve(), scratch)
    return sources.load(f"imagenet:{folder}", model="lite")


def reference(one: Setting, choice: str, scratch: Path) -> Json:
    """Joint training and ridge on all images at once; or fine-tuning update after update without a memory."""
    start = time.process_time()
    state = begin("lite", None, None, SIZE)
    state = spoken(state, one.data)
    tests = Tests(one, state.frozen)
    table = [tests.names.index(n) if n in tests.names else -1 for n in one.data.class_names]
    parts, _ = gather([task.train.relabel(table) for task in one.steps])
    pixels = Pixels(parts[0].store, state.frozen.eval_transform, SIZE)
    pixels.preload(parts)
    labels = [sorted(set(part.labels.tolist())) for part in parts]
    everything = parts[0]
    for part in parts[1:]:
        everything = everything + part
    tasks = tuple(CardTask(name=f"update {i + 1}", labels=part) for i, part in enumerate(labels))
    whole = (CardTask(name="all", labels=list(range(len(tests.names)))),)
    known = Known(tuple(tests.names), whole, state.known.templates, state.known.base)
    rows: list[Json] = []
    clip = state.frozen
    if choice == "ridge on all images":
        ids, of = torch.from_numpy(everything.ids), torch.from_numpy(everything.labels)
        sums = state.sums.widened(len(tests.names)).plus(
            features(clip, everything, pixels, state.known.depths), of, ids
        )
        model = closed_form("lite", known, clip, {"name": "ridge", "prior": "text"}, sums)
    elif choice == "joint":
        steps = sum(max(20, 2 * -(-len(part) // 32)) for part in parts)
        decision = Decision("trained", True, "finetune", 1 / 3, steps, "text")
        clip = trained(clip, Lesson(known, everything, _none(everything), pixels, 0), decision, Quiet())
        model = text_form("lite", known, clip, "finetune")
    else:
        for i, part in enumerate(parts):
            so_far = max(max(ls) for ls in labels[: i + 1]) + 1
            known = Known(tuple(tests.names[:so_far]), tasks[: i + 1], known.templates, known.base)
            steps = max(20, 2 * -(-len(part) // 32))
            decision = Decision("trained", True, "finetune", 1 / 10, steps, "text")
            clip = trained(clip, Lesson(known, part, _none(part), pixels, 0), decision, Quiet())
            rows.append(
                {"tasks": tests.measure(text_form("lite", known, clip, "finetune"), i), "cpu_seconds": 0.0}
            )
        return summary(one, choice, _timed(rows, start), clip, tests, scratch)
    rows.append({"tasks": tests.measure(model, len(parts) - 1), "cpu_seconds": 0.0})
    return summary(one, choice, _timed(rows, start), clip, tests, scratch)


def _none(images: ImageSet) -> ImageSet:
    return images.select(np.zeros(0, dtype=np.int64))


def _timed(rows: list[Json], start: float) -> list[Json]:
    rows[-1]["cpu_seconds"] = round(time.process_time() - start, 1)
    return rows


def wanted() -> Iterator[tuple[str, str, Callable[[Setting, str, Path], Json]]]:
    """Every chain, the ones that matter most first."""
    yield from ((name, choice, chain) for choice in ("layers", "ridge", "auto") for name in SETTINGS)
    yield from ((name, choice, reference) for choice in REFERENCES for name in SETTINGS)
    yield from (
        (name, choice, chain)
        for choice in ("trained", "means", "nothing", "interpolated")
        for name in SETTINGS
    )


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"), help="work goes here")
    parser.add_argument(
        "--settings", nargs="*", default=SETTINGS, help="of them only these; several can run at once"
    )
    parser.add_argument(
        "--choices", nargs="*", default=("auto", *NAMES, *REFERENCES), help="of them only these"
    )
    arguments = parser.parse_args()
    scratch = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, choice, work in wanted():
        here = name in arguments.settings and choice in arguments.choices
        if here and (name, choice) not in read():
            result = work(setting(name, scratch), choice, scratch)
            if choice in ("auto", "layers"):
                result["defaults"] = generation("multilayer_lda")
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(name, choice, result["last"], file=sys.stderr, flush=True)
    from benchmarks.updates_page import page

    PAGE.write_text(page(read()), encoding="utf-8")


def read() -> dict[tuple[str, str], Json]:
    """The chains that are there, by setting and choice."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {(row["setting"], row["choice"]): row for row in map(json.loads, lines) if current(row)}


if __name__ == "__main__":
    main()
