"""What updates do to an index of embeddings; how fast embedding and searching are.

    EVERCLIP_DATA=/folder/with/caltech50/and/cifar100 python -m benchmarks.index [--parts updates embed search]

updates    ten updates in a row on caltech50 and on 50 pictures per class of CIFAR-100, for each way to treat an index
           of all training pictures; test pictures are the queries
embed      `everclip embed` beside the bare encoder on pictures of CIFAR-100; killed with -9 three times and resumed
search     `everclip search` over a million synthetic embeddings beside one matrix product

What is in benchmarks/index/ is not run again; benchmarks/index.md is written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.defaults import cifar_part
from benchmarks.index_page import page
from benchmarks.index_speed import embedding, searching, speed
from benchmarks.jobs import machine, write
from benchmarks.updates import EXEMPLARS, SIZE, Quiet, Setting, Tests, setting
from everclip import data as sources
from everclip.data.gathered import gather
from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.data.scenario import Task, class_order
from everclip.index import embed, folder
from everclip.index.encoder import fingerprint
from everclip.index.folder import Vectors
from everclip.index.maps import Map, fit
from everclip.index.search import nearest
from everclip.models.clip import Clip
from everclip.runs.card import CardTask
from everclip.updating.classifiers import Known, text_form
from everclip.updating.core import Options, spoken, update
from everclip.updating.index import Asked, recall
from everclip.updating.rule import Decision
from everclip.updating.start import begin
from everclip.updating.training import Lesson, trained

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "index", HERE / "index.md"
SETTINGS, CHOICES = ("caltech50", "cifar100"), ("keep", "adapt", "plain")
NEIGHBOURS, QUERIES, EACH = 10, 300, 10
Json = dict[str, Any]


# Updates in a row ---------------------------------------------------------------------------------------------------


def prepared(name: str, scratch: Path) -> Setting:
    """A setting of ten updates by its name."""
    if name != "cifar100":
        return setting(name, scratch)
    cifar_part(Path(os.environ["EVERCLIP_DATA"]).resolve() / "cifar100", scratch / "cifar100-part")
    found = sources.load(f"imagefolder:{scratch / 'cifar100-part'}", "class-incremental", model="lite")
    order, steps = class_order(found.class_names, 1993), []
    for i in range(10):
        labels = tuple(order[EACH * i : EACH * (i + 1)])
        steps.append(
            Task(i, f"{i + 1}", labels, found.train.of_classes(labels), found.test.of_classes(labels))
        )
    return Setting(name, "CIFAR-100, 50 pictures per class, ten updates of ten classes", steps, found)


class Index:
    """The index of all training pictures of a setting by ``lite``, and queries that it is searched with.

    Args:
        one: the setting; its folder of embeddings is made once.
    """

    def __init__(self, one: Setting, clip: Clip, scratch: Path) -> None:
        self.train, self.clip = one.data.train, clip
        self.path = scratch / f"index-{one.name}"
        names = [str(row) for row in self.train.rows.tolist()]
        self.images = replace(self.train, ids=np.arange(len(self.train), dtype=np.int64))
        if not folder.is_vectors(self.path):
            work = embed.Work((one.data.name,), names, self.images)
            embed.embed(clip, "lite", SIZE, work, self.path, False, Quiet())
        self.vectors = folder.read(self.path)
        self.labels = self.labels_of(self.vectors)
        test = one.data.test
        self.queries = test.select(np.unique(np.linspace(0, len(test) - 1, QUERIES).astype(np.int64)))
        self.pixels = Pixels(test.store, clip.eval_transform, SIZE)
        self.old = self.rows(clip)
        self.truth = nearest(self.vectors, self.old.numpy(), NEIGHBOURS)[1]

    def labels_of(self, vectors: Vectors) -> np.ndarray:
        """The class of each embedding."""
        label = dict(zip(map(str, self.train.rows.tolist()), self.train.labels.tolist(), strict=True))
        return np.array([label[name] for name in vectors.names(range(len(vectors)))])

    def rows(self, clip: Clip) -> torch.Tensor:
        """The queries by an encoder."""
        return embed.pictures(clip, self.queries, self.pixels)[0]

    def found(self, rows: torch.Tensor, vectors: Vectors | None = None) -> Json:
        """Recall@10 of what the old queries find, and how many of the ten found are of the query's class."""
        there = self.vectors if vectors is None else vectors
        places = nearest(there, rows.numpy(), NEIGHBOURS)[1]
        labels = self.labels if vectors is None else self.labels_of(vectors)
        same = (labels[places] == self.queries.labels[:, None]).mean()
        shared = recall(places, self.truth) if vectors is None else None
        return {"recall": shared, "same_class": round(float(same), 4)}

    def rebuilt(self, clip: Clip, scratch: Path, name: str) -> Json:
        """The same once all is embedded again, with the seconds that took."""
        path, work = (
            scratch / f"index-{name}",
            embed.Work(("again",), [str(r) for r in self.train.rows], self.images),
        )
        begin, clock = time.process_time(), time.perf_counter()
        report = embed.embed(clip, "again", SIZE, work, path, False, Quiet())
        spent = {"cpu_seconds": time.process_time() - begin, "seconds": time.perf_counter() - clock}
        return self.found(self.rows(clip), report.vectors) | {
            key: round(value, 1) for key, value in spent.items()
        }


def measured(index: Index, clip: Clip, mapped: Map | None) -> Json:
    """What new queries find in the old index, as they are and mapped."""
    if fingerprint(clip) == index.vectors.table.fingerprint:
        return {"valid": True, "plain": index.found(index.old), "mapped": None}
    rows = index.rows(clip)
    return {
        "valid": False,
        "plain": index.found(rows),
        "mapped": None if mapped is None else index.found(mapped(rows)),
    }


def chain(one: Setting, choice: str, scratch: Path) -> Json:
    """Ten updates by ``everclip update``: the automatic choice with ``keep``, trained weights with ``adapt``."""
    state = begin("lite", None, None, SIZE)
    tests, index = Tests(one, state.frozen), Index(one, state.frozen, scratch)
    method = "auto" if choice == "keep" else "trained"
    options = Options(method, EXEMPLARS, 100.0, unmeasured=True, index=Asked(choice, index.vectors))
    rows: list[Json] = []
    for task in one.steps:
        start, clock = time.process_time(), time.perf_counter()
        made = update(state, one.part(task), None, options, Quiet())
        spent = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - clock}
        state = made.state
        assert state.model is not None
        rows.append(_row(one, task, tests.measure(state.model, task.index), spent))
        rows[-1] |= {"chosen": made.verdict["chosen"]} | measured(index, state.encoder, state.map)
        print(one.name, choice, json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return _summary(rows, index, state.encoder, scratch, f"{one.name}-{choice}")


def plain(one: Setting, scratch: Path) -> Json:
    """Ten fine-tunings in a row without exemplars, each with a map fitted on its own pictures."""
    state = spoken(begin("lite", None, None, SIZE), one.data)
    tests, index = Tests(one, state.frozen), Index(one, state.frozen, scratch)
    table = [tests.names.index(n) if n in tests.names else -1 for n in one.data.class_names]
    parts, _ = gather([task.train.relabel(table) for task in one.steps])
    pixels = Pixels(parts[0].store, state.frozen.eval_transform, SIZE)
    clip, before, rows, tasks = state.frozen, index.vectors.table.fingerprint, list[Json](), list[CardTask]()
    for task, part in zip(one.steps, parts, strict=True):
        start, clock = time.process_time(), time.perf_counter()
        tasks.append(CardTask(name=task.name, labels=sorted(set(part.labels.tolist()))))
        names = tuple(tests.names[: max(max(t.labels) for t in tasks) + 1])
        known = Known(names, tuple(tasks), state.known.templates, state.known.base)
        decision = Decision("trained", True, "finetune", 1 / 10, max(20, 2 * -(-len(part) // 32)), "text")
        nothing = part.select(np.zeros(0, dtype=np.int64))
        clip = trained(clip, Lesson(known, part, nothing, pixels, 0), decision, Quiet())
        mapped = _map(clip, state.frozen, part, pixels, before)
        spent = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - clock}
        rows.append(
            _row(one, task, tests.measure(text_form("lite", known, clip, "finetune"), task.index), spent)
        )
        rows[-1] |= {"chosen": "finetune"} | measured(index, clip, mapped)
        print(one.name, "plain", json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return _summary(rows, index, clip, scratch, f"{one.name}-plain")


def _map(clip: Clip, old: Clip, part: ImageSet, pixels: Pixels, mark: str) -> Map:
    """A map fitted on four fifths of an update's pictures and chosen on the others."""
    held = np.arange(len(part)) % 5 == 0
    new, was = (
        tuple(embed.pictures(one, part.select(rows), pixels)[0] for rows in (~held, held))
        for one in (clip, old)
    )
    return fit((new[0], new[1]), (was[0], was[1]), fingerprint(clip), mark)


def _row(one: Setting, task: Task, accuracies: list[float], spent: Json) -> Json:
    sizes = [len(step.test) for step in one.steps[: len(accuracies)]]
    accuracy = round(float(np.average(accuracies, weights=sizes)), 4)
    return {"update": task.name, "accuracy": accuracy} | {
        key: round(value, 1) for key, value in spent.items()
    }


def _summary(rows: list[Json], index: Index, clip: Clip, scratch: Path, name: str) -> Json:
    result: Json = {"updates": rows, "embeddings": len(index.vectors), "queries": len(index.queries)}
    result["rebuilt"] = None if rows[-1]["valid"] else index.rebuilt(clip, scratch, name)
    return result | {"machine": machine()}


# The command --------------------------------------------------------------------------------------------------------


def kept() -> dict[str, Json]:
    """The cells that are there, by name."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))
    }


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"), help="work goes here")
    parser.add_argument(
        "--parts", nargs="*", default=("updates", "embed", "search"), help="of them only these"
    )
    parser.add_argument("--settings", nargs="*", default=SETTINGS, help="of the updates only these")
    parser.add_argument("--choices", nargs="*", default=CHOICES, help="of the updates only these")
    parser.add_argument("--pictures", type=int, default=60_000, help="that are embedded")
    arguments = parser.parse_args()
    scratch = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    cells: dict[str, Callable[[], Json]] = {}
    if "search" in arguments.parts:
        cells["search"] = lambda: searching(scratch)
    if "embed" in arguments.parts:
        cells["speed"] = lambda: speed(scratch)
        cells[f"embed-{arguments.pictures}"] = lambda: embedding(arguments.pictures, scratch)
    for name in arguments.settings if "updates" in arguments.parts else ():
        for choice in arguments.choices:
            cells[f"{name}-{choice}"] = lambda name=name, choice=choice: (
                plain(prepared(name, scratch), scratch)
                if choice == "plain"
                else chain(prepared(name, scratch), choice, scratch)
            )
    for name, work in cells.items():
        if name not in kept():
            write(RESULTS / f"{name}.json", work())
            print(f"{name}: done", file=sys.stderr, flush=True)
    PAGE.write_text(page(kept()), encoding="utf-8")


if __name__ == "__main__":
    main()
