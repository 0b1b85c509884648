"""Read one run directory for the report; any file may be missing, and any line of the log incomplete."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

from everclip.errors import UserError
from everclip.metrics.matrix import forgotten
from everclip.runs import schema as results
from everclip.runs.finished import Finished, read_config
from everclip.runs.log import Json, Log
from everclip.system.reading import MIB, Unreadable, read_json


@dataclass(frozen=True)
class ClassValues:
    """A finite number for each of some classes (at least one), as logged at one step."""

    step: int
    stage: int
    values: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class RunData(Finished):
    """All that a run has written so far; accuracies are fractions in 0..1.

    ``results`` is empty until the run has finished; until then the report takes its numbers from the log.
    """

    config_text: str
    environment: Json
    start: Json
    steps: list[Json]  # ordered by global_step
    stages: list[Json]  # ordered by stage
    class_weights: list[ClassValues]  # ordered by step
    class_losses: list[ClassValues]  # ordered by step
    notes: list[str] = field(default_factory=list)  # what could not be read, one sentence each

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        return bool(self.results)

    @property
    def told(self) -> Json:
        """The plan in the log, and the results; no planned test counts, as some images may turn out unreadable."""
        plan = {"tasks": self.tasks} if self.start else {}
        return {"classes": self.classes} | plan | self.results

    @cached_property
    def tasks(self) -> list[str]:
        """Names of all planned tasks; of the finished ones where the plan is unknown."""
        if "tasks" in self.results:
            return [str(name) for name in self.results["tasks"]]
        planned = [str(task["name"]) for task in self.start.get("tasks", [])]
        return planned or [f"task {stage['stage'] + 1}" for stage in self.stages]

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order learned."""
        return [str(name) for name in self.results.get("classes") or self.start.get("classes", [])]

    @cached_property
    def class_task(self) -> dict[str, int]:
        """The first task with each class."""
        first: dict[str, int] = {}
        for index, task in enumerate(self.start.get("tasks", [])):
            for name in task.get("classes", []):
                first.setdefault(str(name), index)
        for row in self.results.get("per_class", []):
            first.setdefault(str(row["class"]), int(row["task"]))
        return first

    @cached_property
    def same_images(self) -> bool:
        """Whether ``after_learning`` and ``last`` of each class are on the same test images: those of its task.

        Otherwise a task has fewer test images than the classes that were new in it have in all.
        """
        ends = [0] * len(self.tasks)
        for row in self.results.get("per_class", []):
            ends[row["task"]] += row["n"]
        return all(end <= count for end, count in zip(ends, self.test_counts, strict=False))

    @property
    def order(self) -> list[tuple[str, list[str]]]:
        """Each task with its new classes, in the order learned."""
        first = self.class_task
        return [(task, [n for n in self.classes if first.get(n) == t]) for t, task in enumerate(self.tasks)]

    @cached_property
    def test_counts(self) -> list[int]:
        return self.results.get("test_counts") or [int(task["test"]) for task in self.start.get("tasks", [])]

    @property
    def task_id(self) -> str | None:
        """``scenario.task_id``; None in a scenario without it."""
        cross = self.results.get("cross_domain")
        value = cross["task_id"] if cross else self.config.get("scenario.task_id")
        return value if isinstance(value, str) else None  # a config may hold anything

    @cached_property
    def accuracy(self) -> list[float]:
        """A_t after each finished stage."""
        return self.results.get("accuracy_after_stage") or [s["accuracy_after_stage"] for s in self.stages]

    @cached_property
    def zero_shot(self) -> list[float]:
        """A_t of the pretrained model, for every planned stage."""
        return self.results.get("zero_shot_after_stage") or self.start.get("zero_shot", [])

    @cached_property
    def frozen_features(self) -> list[float]:
        """A_t of the strongest closed form on the frozen features; empty where not measured."""
        return self.results.get("frozen_features_after_stage") or self.start.get("frozen_features", [])

    @cached_property
    def matrix(self) -> list[list[float | None]]:
        """``[stages, tasks]``: R[t][i] of each finished stage; None where not measured."""
        rows = self.results.get("matrix") or [stage["row"] for stage in self.stages]
        return [[*row, *[None] * (len(self.tasks) - len(row))] for row in rows]

    @cached_property
    def forgetting(self) -> list[float | None]:
        """The best earlier accuracy on each task minus the last; None where no task has followed."""
        return forgotten(self.matrix)[-1] if self.matrix else []

    @cached_property
    def borders(self) -> list[tuple[int, int]]:
        """Each stage that has trained, with its first global step."""
        first: dict[int, int] = {}
        for step in self.steps:
            first.setdefault(int(step["stage"]), int(step["global_step"]))
        if not first:
            for record in sorted([*self.class_weights, *self.class_losses], key=lambda record: record.step):
                first.setdefault(record.stage, record.step)
        return sorted(first.items())


def is_run(path: Path) -> bool:
    """Return whether a folder holds anything of a run."""
    # os.path: a folder that may not be read must not end the search of its parent
    return any(os.path.isfile(path / name) for name in ("results.json", "metrics.jsonl", "config.toml"))


def holds_runs(folder: Path) -> bool:
    """Return whether a folder is that of a sweep or of runs, itself no run."""
    try:
        return folder.is_dir() and not is_run(folder) and any(map(is_run, folder.iterdir()))
    except OSError:  # it may not be read
        return False


def no_run(path: Path) -> str:
    """Return the message about a path that holds no run."""
    if not os.path.lexists(path):
        return f'"{path}" does not exist: give a run directory'
    if holds_runs(path):
        return f'"{path}" is a folder of runs beside runs: name it, too'
    files = "results.json, metrics.jsonl or config.toml"
    return f'"{path}" is not a run directory (no {files}): give a run directory'


def read_run(path: Path) -> RunData:
    """Return a run directory's content, complete or not.

    Raises:
        UserError: ``path`` holds no run, or its results.json or config.toml cannot be read.
    """
    if not is_run(path):
        raise UserError(no_run(path))
    log = Log(path / "metrics.jsonl")
    text, config = read_config(path)
    known = results.read(path / "results.json") if (path / "results.json").exists() else {}
    starts = log.of("start")
    start, stages, notes = starts[0] if starts else {}, log.of("stage"), log.notes
    if start and len(start["tasks"]) != len(known.get("tasks", start["tasks"])):
        start, notes = {}, [*notes, "metrics.jsonl starts with other tasks than results.json."]
    planned = known.get("tasks") or start.get("tasks") or stages
    return RunData(
        path=path,
        results=known,
        config=config,
        config_text=text,
        environment=_environment(path / "environment.json", notes),
        start=start,
        steps=log.of("step"),
        stages=[stage for stage in stages if max(stage["stage"] + 1, len(stage["row"])) <= len(planned)],
        class_weights=_class_values(log.of("class_weights"), "weights"),
        class_losses=_class_values(log.of("class_losses"), "losses"),
        notes=notes,
    )


def _environment(path: Path, notes: list[str]) -> Json:
    """Return the content of environment.json; empty, with a note, where it cannot be read."""
    found = {}
    try:
        found = read_json(path, MIB) if path.exists() else {}
    except Unreadable as error:
        notes.append(f"environment.json cannot be read ({error}).")
    return found if isinstance(found, dict) else {}


def _class_values(lines: list[Json], name: str) -> list[ClassValues]:
    """Return the finite numbers of lines, sorted by step, without lines that have none."""
    records: list[ClassValues] = []
    for line in lines:
        if values := {key: float(value) for key, value in line[name].items() if finite(value)}:
            records.append(ClassValues(line["global_step"], line["stage"], values))
    return sorted(records, key=lambda record: record.step)


def finite(value: object) -> TypeGuard[float]:
    """Return whether a value from JSON is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
