"""Sort runs into sections, rows and repetitions.

There is a section per value of ``by``, in it a row per method and setting, and in that one run per repetition (seed).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from everclip.compare.comparable import (
    ANY,
    REFERENCES,
    difference,
    distinguishing,
    excused,
    hint,
    seeded,
    shown,
    without_memory,
)
from everclip.errors import UserError, suggest
from everclip.runs.finished import Finished, natural
from everclip.runs.read import finite
from everclip.runs.schema import kept

log = logging.getLogger("everclip")


def order(method: str, label: str = "") -> tuple[bool, list[str | tuple[int, str]]]:
    """Return the sort key for lists of methods: by name, references last."""
    return method in REFERENCES, natural(label or method)


_PRETRAINED = {
    "last": lambda results: results["zero_shot"],
    "zero_shot": lambda results: results["zero_shot"],
    "average": lambda results: fmean(results["zero_shot_after_stage"]),
    "cross_domain.transfer": lambda results: (results.get("cross_domain") or {}).get("transfer_of_zero_shot"),
}
"""Metrics of the pretrained model, recorded by every run."""

_NOT_OF_JOINT = ("average", "any_time", "memory_bytes", "kept_bytes")
"""Metrics that joint training lacks: it has a single stage, and the images of all tasks do not count as memory."""

Repetition = tuple[str, ...]


@dataclass(eq=False)
class Row:
    """A method with its settings."""

    method: str
    options: dict[str, Any]  # keys and values that differ from the method's other rows
    runs: dict[Repetition, Finished] = field(default_factory=dict)  # one per repetition
    # whether it is the pretrained model, with the numbers that each of these runs recorded of it
    recorded: bool = False
    varied: bool = False  # whether its repetitions differ in more than the seed

    @property
    def reference(self) -> bool:
        """Whether it is only shown beside the others, and not tested against them."""
        return self.method in REFERENCES

    @property
    def seeded(self) -> bool:
        """Whether its numbers could depend on the seed."""
        return any(seeded(run, self.recorded) for run in self.runs.values())

    @property
    def random(self) -> bool:
        """Whether its numbers could differ between its repetitions."""
        return self.varied or self.seeded

    @property
    def label(self) -> str:
        """``gdro margin=0.3``."""
        given = {key: value for key, value in self.options.items() if value is not None} or self.options
        words = [f"{key.rsplit('.', 1)[-1]}={shown(value)}" for key, value in given.items()]
        return " ".join([self.method, *words])

    def values(self, metric: str) -> dict[Repetition, float]:
        """Return the metric of each repetition that measured it. Raises UserError as ``number`` does."""
        pretrained = _PRETRAINED.get(metric, lambda results: None)
        found = {
            at: pretrained(run.results) if self.recorded else number(run, metric)
            for at, run in self.runs.items()
            if not _lacks(run, metric)
        }
        return {repetition: value for repetition, value in found.items() if value is not None}


@dataclass(eq=False)
class Section:
    """The rows of one setting. ``by``: its keys and values."""

    by: dict[str, Any]
    rows: list[Row]


def known(run: Finished, metric: str) -> float | None:
    """Return the number in results.json under a key such as ``cross_domain.transfer``; None if there is none.

    Also None for what joint training lacks, such as an average, where its runs record the last accuracy.
    """
    if _lacks(run, metric):
        return None
    value = _within(run.results, metric)
    if metric == "kept_bytes" and value is metric and (both := kept(run.results)) is not None:
        return float(sum(both))  # earlier versions did not record the sum
    return float(value) if finite(value) else None


def _lacks(run: Finished, metric: str) -> bool:
    return run.method == REFERENCES[1] and metric in _NOT_OF_JOINT


def number(run: Finished, metric: str) -> float | None:
    """Return what ``known`` does. Raises UserError if the key is unknown or its value is not a number."""
    value = known(run, metric)
    if value is None and not _lacks(run, metric) and _within(run.results, metric) is not None:
        numbers = [key for key, value in run.results.items() if type(value) in (int, float)]
        raise UserError(f'{run.path} has no number "{metric}"{suggest(metric, numbers)}')
    return value


def _within(results: Mapping[str, Any], metric: str) -> Any:
    """Return a key's value; None if it or a table around it was not measured; the key itself if it is unknown."""
    value: Any = results
    for key in metric.split("."):
        if value is None:
            break
        value = value.get(key, metric) if isinstance(value, Mapping) else metric
    return value


def sections(runs: Sequence[Finished], by: Sequence[str], over: Sequence[str]) -> list[Section]:
    """Return the runs in sections and rows.

    A run that a key of ``by`` does not affect (an option of another method; the memory, if its method keeps none) is in
    every section. Other settings that differ within a method and section make separate rows, except tuned ones.

    Args:
        by: config keys; each combination of their values has a section.
        over: config keys of repetitions, such as ``seed``.
    """
    for key in (*by, *over):
        if all(run.value(key) is None for run in runs):
            known = {name for run in runs for name in run.config}
            raise UserError(f'no run has the key "{key}"{suggest(key, known)}')
    placed = [(run, tuple(_place(run, key) for key in by)) for run in runs]
    whole = [place for _, place in placed if ANY not in place]
    whole += [at for _, at in placed if not any(_fits(at, place) for place in whole)]
    places = {json.dumps(place, default=lambda value: "any"): place for place in whole}
    ordered = sorted(places.values(), key=lambda place: [natural(shown(value)) for value in _told(place)])
    parts = [[run for run, at in placed if _fits(at, place)] for place in ordered]
    options = {  # the same in every section, so that a row has one name
        method: distinguishing(
            [[run for run in part if run.method == method] for part in parts], {*by, *over}
        )
        for method in dict.fromkeys(run.method for run in runs)
    }
    return [
        Section(dict(zip(by, _told(place), strict=True)), _rows(part, options, over))
        for place, part in zip(ordered, parts, strict=True)
    ]


def _told(place: Sequence[Any]) -> list[Any]:
    """Return the values of a place, with ``any`` where the key makes no difference."""
    return ["any" if value is ANY else value for value in place]


def _fits(at: Sequence[Any], place: Sequence[Any]) -> bool:
    return all(mine is ANY or mine == theirs for mine, theirs in zip(at, place, strict=True))


def _place(run: Finished, key: str) -> Any:
    unused = key.startswith("memory.") and without_memory(run)
    foreign = key.startswith("method.") and key not in run.config
    return ANY if unused or foreign else run.value(key)


def _rows(runs: Sequence[Finished], options: Mapping[str, Sequence[str]], over: Sequence[str]) -> list[Row]:
    """Return the rows of one section, sorted; the pretrained model has one even without runs of its own."""
    rows: dict[str, Row] = {}
    names: dict[str, str] = {}  # of class orders: several may give the same tasks
    at = partial(_repetition, names, over)
    for run in runs:
        row = Row(run.method, {key: run.config.get(key) for key in options[run.method]})
        row = rows.setdefault(row.label, row)
        twin = row.runs.setdefault(at(run), run)
        if twin is not run and not without_memory(run):
            log.warning("%s repeats %s: left out", run.path, twin.path)
    if not any(row.method == REFERENCES[0] for row in rows.values()):
        recorded: dict[Repetition, Finished] = {}
        told = [run for run in runs if run.results.get("zero_shot") is not None and _curve(run)]
        for run in sorted(told, key=lambda run: -len(_curve(run))):  # the curve of joint has one stage
            recorded.setdefault(at(run), run)
        if recorded:  # features may come without text
            rows[REFERENCES[0]] = Row(REFERENCES[0], {}, recorded, recorded=True)
    for row in rows.values():
        row.varied = len({besides_seed(each, over) for each in row.runs}) > 1
    return sorted(rows.values(), key=lambda row: order(row.method, row.label))


def _repetition(names: dict[str, str], over: Sequence[str], run: Finished) -> Repetition:
    """Return what sets a run apart in its row; class orders that give the same tasks share the name of the first."""
    found = [shown(run.value(key)) for key in over]
    if "scenario.order" in over and (classes := run.results.get("classes")):
        place = over.index("scenario.order")
        same = json.dumps([classes, run.results.get("tasks")])
        found[place] = names.setdefault(same, found[place])
    return tuple(found)


def besides_seed(at: Repetition, over: Sequence[str]) -> Repetition:
    """Return what sets a repetition apart from others, except the seed."""
    return tuple(value for value, key in zip(at, over, strict=True) if key != "seed")


def _curve(run: Finished) -> Sequence[float]:
    """Return the pretrained model's accuracy after each stage; empty where not recorded."""
    return run.results.get("zero_shot_after_stage") or []


def settings(row: Row) -> dict[str, Any]:
    """Return the config keys in which all runs of a row agree, with their values."""
    first, *others = [{}] if row.recorded else [run.config for run in row.runs.values()]
    return {key: value for key, value in first.items() if all(c.get(key, ANY) == value for c in others)}


def cost(row: Row, unit: str) -> float:
    """Return the mean cost of a row's runs in a unit of ``COSTS``. Raises UserError where none has recorded it."""
    key, runs = COSTS[unit], list(row.runs.values())
    found = [value for run in runs if (value := known(run, key)) is not None]
    if not found:
        raise UserError(
            f"--equal {unit}: {runs[0].path} has recorded no {key}: leave it out, or use another unit"
        )
    return fmean(found)


def kept_by(row: Row) -> dict[str, float] | None:
    """Return the mean bytes of images and of state that a row's runs keep; None if unknown or without meaning."""
    runs = [run for run in row.runs.values() if not _lacks(run, "kept_bytes")]
    found = [both for run in runs if (both := kept(run.results)) is not None]
    if row.recorded or not found:
        return None
    return dict(zip(("image_bytes", "state_bytes"), map(fmean, zip(*found, strict=True)), strict=True))


def amount(cost: float, unit: str) -> tuple[str, str]:
    """Return a cost in a unit of ``COSTS`` as a number and its unit: ``("0.50", "MB")``."""
    return (f"{cost / 1e6:,.2f}", "MB") if unit == "bytes" else (f"{cost:,.0f}", unit)


def _level(cost: float, unit: str) -> str:
    """Return a cost with its unit, distinct for each level: bytes to three digits, ``1.45 MB``, ``1.2 kB``."""
    if unit != "bytes":
        return f"{cost:,.0f} {unit}"
    scale, name = next((known for known in _BYTES if cost >= known[0]), (1, "bytes"))
    return f"{float(f'{cost / scale:.3g}'):g} {name}"


_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
COSTS = {"bytes": "kept_bytes", "steps": "optimizer_steps", "samples": "samples_seen"}
"""Units of ``equal``, and their keys of results.json."""
_LENGTH = ("memory.", "train.steps", "train.epochs", "train.batch_size")
_TOLERANCE = {"bytes": 1.05}
"""By what a cost may exceed another and still count as equal: which exemplars are kept changes the bytes of one budget,
by 1.4 % between two orders of herding. Steps and samples are exact."""


def at_equal_cost(sections: Sequence[Section], unit: str, against: str | None) -> list[Section]:
    """Return a section per section and cost level, with each method's most expensive row within that cost.

    Levels are the costs of ``against``, or else of all rows except references; references are in every section.
    Bytes within 5 % count as equal. A level with the same rows as the one before, or with one row, is left out.

    Raises:
        UserError: no level has two methods, or no run of a row has recorded its cost.
    """
    made: list[Section] = []
    for section in sections:
        rivals = [row for row in section.rows if not row.reference]
        asked = [row for row in rivals if against in (None, row.method, row.label)]
        before: list[Row] = []
        for level in sorted({cost(row, unit) for row in asked}):
            best: dict[str, Row] = {}
            for row in sorted(rivals, key=lambda row: cost(row, unit)):
                if cost(row, unit) <= level * _TOLERANCE.get(unit, 1.0):
                    kept = {key: v for key, v in row.options.items() if not key.startswith(_LENGTH)}
                    best[Row(row.method, kept).label] = row
            chosen = [row for row in section.rows if row.reference or row in best.values()]
            if len(best) > 1 and chosen != before:
                made.append(Section(section.by | {"cost": f"at most {_level(level, unit)}"}, chosen))
                before = chosen
    if not made:
        raise UserError(f"--equal {unit}: no two methods can be compared at the same cost")
    return made


def check(sections: Sequence[Section], by: Sequence[str], over: Sequence[str]) -> None:
    """Raise UserError if runs are not comparable: within a section, or across sections apart from ``by``."""
    repeated, shown_by = (set().union(*map(excused, keys)) for keys in (over, by))
    parts = [dict.fromkeys(run for row in section.rows for run in row.runs.values()) for section in sections]
    everything = dict.fromkeys(run for part in parts for run in part)
    within = [(list(part), repeated) for part in parts]
    for some, excuses in [*within, (list(everything), repeated | shown_by)]:
        if words := difference(some, excuses):
            key = hint(words.partition(" (")[0], some)
            apart = f"--by {key}, " if key else ""
            raise UserError(f"these runs differ in {words}: compare them separately, {apart}or use --anyway")
