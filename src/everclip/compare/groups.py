"""Group runs that may be averaged, and settings of groups that may be compared.

A *setting* is all that must agree for numbers to be comparable: model, data, scenario, classes, test images
and prompts. A *group* holds runs of one setting, method and memory size whose configs differ only in the seed.
Only runs of one group are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from everclip.compare.cells import known, order
from everclip.compare.comparable import (
    ANY,
    REFERENCES,
    distinguishing,
    excused,
    seeded,
    sorted_out,
    without_memory,
)
from everclip.metrics.matrix import forgotten
from everclip.metrics.stats import Interval, interval
from everclip.runs.finished import natural
from everclip.runs.read import RunData
from everclip.runs.words import fact, plain

_SHOWN = ("seed", "method", "memory.budget", "memory.per_class")
"""Config keys that name a group."""
Memory = int | str | None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone."""

    method: str
    # the budget of exemplars: a number, "all", or None where it makes no difference to the method
    memory: Memory
    variant: str  # settings that differ from other groups of the same method and memory; often empty
    runs: tuple[RunData, ...]  # at least one, finished or not, in the order of their seeds
    look: int = 0  # number of its colour, dash and marker in every chart

    @property
    def series(self) -> str:
        """The name of the line that connects its memory sizes."""
        return f"{self.method}, {self.variant}" if self.variant else self.method

    @property
    def label(self) -> str:
        """Its name with the memory size."""
        return self.series if self.memory is None else f"{self.series}, memory {self.memory}"

    @property
    def reference(self) -> bool:
        """Whether it is the pretrained model or joint training."""
        return self.method in REFERENCES

    @cached_property
    def random(self) -> bool:
        """Whether its numbers could depend on the seed."""
        return any(map(seeded, self.shown))

    @cached_property
    def finished(self) -> tuple[RunData, ...]:
        """The runs with results, the first one per seed: repeating a seed adds no evidence."""
        first: dict[Any, RunData] = {}
        for run in self.runs:
            if run.finished:
                first.setdefault(run.value("seed"), run)
        return tuple(first.values())

    @property
    def repeated(self) -> tuple[RunData, ...]:
        """Finished runs that repeat a seed, left out of all means."""
        return tuple(run for run in self.runs if run.finished and run not in self.finished)

    @property
    def shown(self) -> tuple[RunData, ...]:
        """The runs to draw curves of: the finished ones, else those that have learned a task, else all."""
        return self.finished or tuple(run for run in self.runs if run.accuracy) or self.runs

    def values(self, key: str) -> list[float]:
        """Return a number of results.json in each finished run that has it."""
        found = (known(run, key) for run in self.finished)
        return [value for value in found if value is not None]

    def interval(self, key: str) -> Interval | None:
        """Return the mean and 95 % interval over seeds; None without a finished run that has the number."""
        values = self.values(key)
        return interval(values) if values else None

    @cached_property
    def curve(self) -> list[Interval]:
        """A_t, up to the last stage that all runs shown have reached."""
        return [interval(list(values)) for values in zip(*(run.accuracy for run in self.shown), strict=False)]

    @cached_property
    def matrix(self) -> list[list[float | None]]:
        """R, the mean over the runs shown, up to the last stage that all have reached."""
        return _mean_rows([run.matrix for run in self.shown])

    @cached_property
    def forgotten(self) -> list[list[float | None]]:
        """F, the mean over the runs shown; not the forgetting of their mean R, as maxima differ between runs."""
        return _mean_rows([forgotten(run.matrix) for run in self.shown])


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs whose numbers can be compared."""

    name: str  # unique on the page
    ident: str  # prefix of its ids
    facts: dict[str, Any]  # what all of its runs have in common
    every: tuple[Group, ...]  # all groups, by method, variant and memory; references last

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups with a memory size."""
        return tuple(group for group in self.every if group.memory is not None)

    @cached_property
    def level(self) -> tuple[Group, ...]:
        """The groups of methods to which the memory makes no difference."""
        return tuple(group for group in self.every if group.memory is None)

    @property
    def test_images(self) -> int:
        """The number of test images in the end; 0 where no run says."""
        return sum(self.facts.get("test counts") or ())

    @cached_property
    def runs(self) -> tuple[RunData, ...]:
        """All runs, group by group."""
        return tuple(run for group in self.every for run in group.runs)

    @cached_property
    def memories(self) -> list[Memory]:
        """The memory sizes of the groups, from small to large."""
        return sorted({group.memory for group in self.groups}, key=memory_order)

    @cached_property
    def zero_shot(self) -> float | None:
        """The pretrained model's accuracy on all test images, the mean over the runs that measured it."""
        return mean([run.zero_shot[-1] for run in self.runs if run.zero_shot])

    @cached_property
    def zero_shot_curve(self) -> list[float]:
        """A_t of the pretrained model, the mean over the runs that measured it."""
        return _longest_mean([run.zero_shot for run in self.runs])

    @cached_property
    def frozen_curve(self) -> list[float]:
        """A_t of the strongest closed form on the frozen features; empty where no run measured it."""
        return _longest_mean([run.frozen_features for run in self.runs])

    @property
    def frozen_features(self) -> float | None:
        """The frozen features' accuracy on all test images, the mean over the runs that measured it."""
        return mean([run.frozen_features[-1] for run in self.runs if run.frozen_features])

    @property
    def joint(self) -> list[Group]:
        """Finished joint training on all tasks at once, the upper reference."""
        return [group for group in self.level if group.method == "joint" and group.finished]

    @cached_property
    def tasks(self) -> list[str]:
        """Task names of the run with the most tasks; numbers where their order differs between runs."""
        names = max((run.tasks for run in self.runs), key=len, default=[])
        alike = all(run.tasks == names for run in self.runs if len(run.tasks) == len(names))
        return names if alike else [f"task {k + 1}" for k in range(len(names))]


def settings(runs: Iterable[RunData]) -> list[Setting]:
    """Sort runs into settings and groups; no run is left out."""
    # Finished runs state all facts, so they come first: an unknown fact fits anything.
    ordered = sorted(runs, key=lambda run: (not run.finished, natural(str(run.path))))
    found = sorted_out(ordered, excused("memory.policy"))  # here keeping all is one of the memory sizes
    facts = [{key: None if v is ANY else v for key, v in known.items()} for known, _ in found]
    grouped = [_groups([ordered[k] for k in places]) for _, places in found]
    series = {group.series for groups in grouped for group in groups if not group.reference}
    looks = {name: k for k, name in enumerate(sorted(series, key=natural))}
    return [
        Setting(name, f"set{k}", known, tuple(replace(g, look=looks.get(g.series, 0)) for g in groups))
        for k, (name, known, groups) in enumerate(zip(_names(facts), facts, grouped, strict=True), 1)
    ]


def differing(settings: Sequence[Setting]) -> list[str]:
    """Return the facts in which settings differ, in words."""
    return [key.replace("_", " ") for key in _differing([setting.facts for setting in settings])]


def _differing(facts: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for known in facts for key in known)
    values = {key: {repr(known.get(key)) for known in facts} for key in keys}
    return [key for key, different in values.items() if len(different - {"None"}) > 1]  # unknown facts fit


def _names(of: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name per setting: its data, and as many differing facts as it takes to tell them apart."""
    found = [[str(known["data"] or "unknown data")] for known in of]
    for key in _differing(of):
        if len({tuple(name) for name in found}) == len(found):
            break
        if key != "data":
            found = [[*name, fact(key, known.get(key))] for name, known in zip(found, of, strict=True)]
    made = [", ".join(name) for name in found]
    return [
        f"{name} ({made[: n + 1].count(name)})" if made.count(name) > 1 else name
        for n, name in enumerate(made)
    ]


def memory_order(memory: Memory) -> float:
    """Return a sort key: numbers as numbers, "all" last."""
    return float(memory) if isinstance(memory, int) else float("inf")


def _groups(runs: Sequence[RunData]) -> list[Group]:
    """Return the groups of a setting by method, variant and memory, without looks."""
    groups: list[Group] = []
    for method in sorted({run.method for run in runs}):
        members = [run for run in runs if run.method == method]
        sizes = _sizes(members)
        of_size = [  # runs that need no memory count at every size
            [run for run, one in zip(members, sizes, strict=True) if one in (size, None)]
            for size in set(sizes) - {None} or {None}
        ]
        keys = sorted(distinguishing(of_size, _SHOWN))
        apart: dict[tuple[Memory, str], list[RunData]] = {}
        for run, memory in zip(members, sizes, strict=True):
            values = run.config or run.results
            variant = ", ".join(f"{key.removeprefix('method.')} {plain(values.get(key))}" for key in keys)
            apart.setdefault((memory, variant), []).append(run)
        for (memory, variant), same in apart.items():
            same.sort(key=lambda run: natural(str(run.value("seed"))))
            groups.append(Group(method, memory, variant, tuple(same)))
    return sorted(groups, key=lambda group: (*order(group.method, group.series), memory_order(group.memory)))


def _sizes(runs: Sequence[RunData]) -> list[Memory]:
    """Return the memory size of each of a method's runs; None where it makes no difference to the run's variant."""
    keys = [key for key in distinguishing([runs], _SHOWN) if key.startswith("method.")]
    variants: dict[str, list[RunData]] = {}
    for run in runs:
        variants.setdefault(repr([*map(run.value, keys)]), []).append(run)
    free = {
        name: all(map(without_memory, [run for run in same if run.finished] or same))
        for name, same in variants.items()
    }
    return [None if free[repr([*map(run.value, keys)])] else _memory(run) for run in runs]


def _memory(run: RunData) -> Memory:
    quota, budget = run.value("memory.per_class"), run.value("memory.budget")
    if isinstance(quota, int) and run.classes:  # it may be "none"
        budget = quota * len(run.classes)
    value = run.results.get("memory_budget", budget)
    return "unknown" if value in (None, "none") else value


def _longest_mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of the curves with the most tasks; joint training has only one."""
    most = max(map(len, curves), default=0)
    return [sum(values) / len(values) for values in zip(*(c for c in curves if len(c) == most), strict=True)]


def _mean_rows(matrices: Iterable[Sequence[Sequence[float | None]]]) -> list[list[float | None]]:
    """Return the mean of each cell, up to the last row that all matrices have."""
    rows = zip(*matrices, strict=False)
    return [[mean(cell) for cell in zip(*row, strict=False)] for row in rows]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
