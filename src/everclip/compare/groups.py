"""Group runs that may be averaged, and those that may only be compared.

A *setting* is everything that must agree for numbers to be comparable: the model, the data, the scenario, the
classes, the test images, the prompts. A *group* holds runs of one setting, method and memory size whose configs
differ only in the seed. Only runs of one group are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from everclip.compare.cells import known, order
from everclip.compare.comparable import ANY, REFERENCES, excused, seeded, sorted_out, varying, without_memory
from everclip.metrics.stats import Interval, interval
from everclip.runs.finished import natural
from everclip.runs.read import RunData
from everclip.runs.words import fact, plain

_SHOWN = ("seed", "method", "memory.budget", "memory.per_class")
"""Config keys that name a group."""
Memory = int | str | None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone.

    Args:
        method: its name.
        memory: the budget of exemplars: a number, "all", or None where it makes no difference to the method.
        variant: settings by which it differs from other groups of the same method and memory; often empty.
        runs: at least one, finished or not, in the order of their seeds.
        look: number of the colour, dash and marker that it has in every chart.
    """

    method: str
    memory: Memory
    variant: str
    runs: tuple[RunData, ...]
    look: int = 0

    @property
    def series(self) -> str:
        """The name of the line that connects its memory sizes."""
        return f"{self.method}, {self.variant}" if self.variant else self.method

    @property
    def label(self) -> str:
        """Its name where the memory size is not plain from the place."""
        return self.series if self.memory is None else f"{self.series}, memory {self.memory}"

    @property
    def reference(self) -> bool:
        """Whether it is there to compare with: the pretrained model, or joint training."""
        return self.method in REFERENCES

    @cached_property
    def random(self) -> bool:
        """Whether its numbers could depend on the seed."""
        return any(map(seeded, self.shown))

    @cached_property
    def finished(self) -> tuple[RunData, ...]:
        """The runs that have results, one per seed: a seed that was run twice says nothing about another one."""
        first: dict[Any, RunData] = {}
        for run in self.runs:
            if run.finished:
                first.setdefault(run.value("seed"), run)
        return tuple(first.values())

    @property
    def repeated(self) -> tuple[RunData, ...]:
        """Finished runs that repeat a seed, and are left out of all means."""
        return tuple(run for run in self.runs if run.finished and run not in self.finished)

    @property
    def shown(self) -> tuple[RunData, ...]:
        """The runs that curves are drawn of: the finished ones, or all while there is none."""
        return self.finished or self.runs

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
        """A_t, as far as all runs shown have come."""
        return [interval(list(values)) for values in zip(*(run.accuracy for run in self.shown), strict=False)]

    @cached_property
    def matrix(self) -> list[list[float | None]]:
        """R, the mean over the runs shown, as far as all have come."""
        rows = zip(*(run.matrix for run in self.shown), strict=False)
        return [[mean(cell) for cell in zip(*row, strict=False)] for row in rows]

    @cached_property
    def seeds(self) -> str:
        """The seeds of all runs in words."""
        return ", ".join(str(run.value("seed")) for run in self.runs)


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs whose numbers can be compared.

    Args:
        name: what it is called on the page; differs between settings.
        ident: prefix of its ids.
        facts: what is the same in all of its runs.
        groups: by method, variant and memory.
        level: groups of methods to which the memory makes no difference, the references last.
    """

    name: str
    ident: str
    facts: dict[str, Any]
    groups: tuple[Group, ...]
    level: tuple[Group, ...]

    @property
    def test_images(self) -> int:
        """How many there are in the end; 0 where no run says."""
        return sum(self.facts.get("test counts") or ())

    @property
    def every(self) -> tuple[Group, ...]:
        """All groups, in the order of methods: a method that keeps nothing stands among the others."""
        return tuple(sorted(self.groups + self.level, key=_order))

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
        """The pretrained model's accuracy on all test images: the mean over the runs that measured it."""
        return mean([run.zero_shot[-1] for run in self.runs if run.zero_shot])

    @cached_property
    def zero_shot_curve(self) -> list[float]:
        """A_t of the pretrained model: the mean over the runs that measured it."""
        return _longest_mean([run.zero_shot for run in self.runs])

    @cached_property
    def frozen_curve(self) -> list[float]:
        """The same of the strongest closed form on the frozen features; empty where no run measured it."""
        return _longest_mean([run.frozen_features for run in self.runs])

    @property
    def frozen_features(self) -> float | None:
        """The frozen features' accuracy on all test images, as far as runs measured it."""
        return mean([run.frozen_features[-1] for run in self.runs if run.frozen_features])

    @property
    def joint(self) -> list[Group]:
        """Joint training, where a run of it has finished: all tasks learned at once, the upper reference."""
        return [group for group in self.level if group.method == "joint" and group.finished]

    @cached_property
    def tasks(self) -> list[str]:
        """Task names, from the run that has the most; numbers where their order differs between runs."""
        names = max((run.tasks for run in self.runs), key=len, default=[])
        alike = all(run.tasks == names for run in self.runs if len(run.tasks) == len(names))
        return names if alike else [f"task {k + 1}" for k in range(len(names))]


def settings(runs: Iterable[RunData]) -> list[Setting]:
    """Sort runs into settings and groups; no run is left out."""
    # Finished runs know all facts, so they go first; what is unknown of another one fits anything.
    ordered = sorted(runs, key=lambda run: (not run.finished, natural(str(run.path))))
    found = [
        (
            {key: None if value is ANY else value for key, value in facts.items()},
            [ordered[k] for k in members],
        )
        for facts, members in sorted_out(ordered, excused("memory.policy"))  # a memory of all is a size here
    ]
    grouped = [_groups(members) for _, members in found]
    series = sorted(
        {group.series for groups in grouped for group in groups if not group.reference}, key=natural
    )
    looks = {name: k for k, name in enumerate(series)}
    made: list[Setting] = []
    for k, (name, (facts, _), groups) in enumerate(
        zip(_names([facts for facts, _ in found]), found, grouped, strict=True), 1
    ):
        groups = [replace(group, look=looks.get(group.series, 0)) for group in groups]
        sized = tuple(group for group in groups if group.memory is not None)
        level = tuple(group for group in groups if group.memory is None)
        made.append(Setting(name, f"set{k}", facts, sized, level))
    return made


def differing(settings: Sequence[Setting]) -> list[str]:
    """Return the facts in which settings differ, in words."""
    return [key.replace("_", " ") for key in _differing([setting.facts for setting in settings])]


def _differing(facts: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for known in facts for key in known)
    return [key for key in keys if len({repr(known.get(key)) for known in facts}) > 1]


def _names(of: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name per setting: its data, and of what else differs as much as it takes to tell them apart."""
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
    """Return groups of a setting, without looks: by method, variant and memory."""
    groups: list[Group] = []
    for method in sorted({run.method for run in runs}):
        members = [run for run in runs if run.method == method]
        sizes = [_memory(run) for run in members]
        if _without_memory(method, members):
            sizes = [None] * len(members)
        keys = _distinguishing(members, sizes)
        apart: dict[tuple[Memory, str], list[RunData]] = {}
        for run, memory in zip(members, sizes, strict=True):
            values = run.config or run.results
            variant = ", ".join(f"{key.removeprefix('method.')} {plain(values.get(key))}" for key in keys)
            apart.setdefault((memory, variant), []).append(run)
        groups += [
            Group(
                method,
                memory,
                variant,
                tuple(sorted(inside, key=lambda run: natural(str(run.value("seed"))))),
            )
            for (memory, variant), inside in apart.items()
        ]
    return sorted(groups, key=_order)


def _order(group: Group) -> tuple[Any, ...]:
    return *order(group.method, group.series), memory_order(group.memory)


def _distinguishing(runs: Sequence[RunData], sizes: Sequence[Memory]) -> list[str]:
    """Return keys in which runs of one method and memory size differ; a rate tuned for each size is none of them."""
    of_size = [[run for run, size in zip(runs, sizes, strict=True) if size == one] for one in set(sizes)]
    return sorted({key for same in of_size for key in varying(same, _SHOWN)})


def _without_memory(method: str, runs: Sequence[RunData]) -> bool:
    """Return whether a method keeps no exemplars, whatever its budget, as its finished runs or else its configs say."""
    done = [run for run in runs if run.finished] or runs
    return method in REFERENCES or all(map(without_memory, done))


def _memory(run: RunData) -> Memory:
    quota, budget = run.value("memory.per_class"), run.value("memory.budget")
    if quota is not None and run.classes:
        budget = quota * len(run.classes)
    value = run.results.get("memory_budget", budget)
    return "unknown" if value in (None, "none") else value


def _longest_mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of the curves with the most tasks (joint training has one alone): the order of the classes may
    vary with the seed."""
    most = max(map(len, curves), default=0)
    return [sum(values) / len(values) for values in zip(*(c for c in curves if len(c) == most), strict=True)]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known; None of nothing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
