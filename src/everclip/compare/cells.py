"""Sort runs into sections, rows and repetitions.

There is a section per value of ``by``, in it a row per method and setting, and in that one run per repetition (seed).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from everclip.compare.comparable import (
    ANY,
    REFERENCES,
    difference,
    excused,
    hint,
    seeded,
    shown,
    varying,
    without_memory,
)
from everclip.errors import UserError, suggest
from everclip.runs.finished import Finished, natural
from everclip.runs.read import finite
from everclip.runs.schema import kept

log = logging.getLogger("everclip")


def order(method: str, label: str = "") -> tuple[bool, list[str | int]]:
    """Return the sort key of methods, wherever several are listed: by name, what is there to compare with last."""
    return method in REFERENCES, natural(label or method)


_PRETRAINED = {
    "last": lambda results: results["zero_shot"],
    "zero_shot": lambda results: results["zero_shot"],
    "average": lambda results: fmean(results["zero_shot_after_stage"]),
    "cross_domain.transfer": lambda results: (results.get("cross_domain") or {}).get("transfer_of_zero_shot"),
}
"""Metrics of the pretrained model, recorded by every run."""

Repetition = tuple[str, ...]


@dataclass(eq=False)
class Row:
    """A method with its settings.

    Args:
        options: the keys that tell it from the method's other rows in the section, with their values.
        runs: one a repetition.
        recorded: its numbers are those of the pretrained model, which each of these runs has recorded.
    """

    method: str
    options: dict[str, Any]
    runs: dict[Repetition, Finished] = field(default_factory=dict)
    recorded: bool = False

    @property
    def reference(self) -> bool:
        """Whether it is shown beside the others and not tested against them."""
        return self.method in REFERENCES

    @property
    def random(self) -> bool:
        """Whether its numbers could depend on the seed."""
        return any(map(seeded, self.runs.values())) and not self.recorded

    @property
    def label(self) -> str:
        """``gdro margin=0.3``."""
        given = {key: value for key, value in self.options.items() if value is not None} or self.options
        words = [f"{key.rsplit('.', 1)[-1]}={shown(value)}" for key, value in given.items()]
        return " ".join([self.method, *words])

    def values(self, metric: str) -> dict[Repetition, float]:
        """Return the metric by repetition, where it was measured. Raises UserError for what is no number of
        results.json."""
        found: dict[Repetition, float] = {}
        for repetition, run in self.runs.items():
            pretrained = _PRETRAINED.get(metric, lambda results: None)
            value = pretrained(run.results) if self.recorded else number(run, metric)
            if value is not None:
                found[repetition] = value
        return found


@dataclass(eq=False)
class Section:
    """The rows of one setting. ``by``: its keys and values."""

    by: dict[str, Any]
    rows: list[Row]


def known(run: Finished, metric: str) -> float | None:
    """Return a number of results.json, None where it has none; earlier versions did not add up what is kept.

    Args:
        metric: its key; points lead to a number within, such as ``cross_domain.transfer``.
    """
    value = _within(run.results, metric)
    if metric == "kept_bytes" and value is metric and (both := kept(run.results)) is not None:
        return float(sum(both))
    return float(value) if finite(value) else None


def number(run: Finished, metric: str) -> float | None:
    """Return the same. Raises UserError for a key that is not there, or is none of a number."""
    value = known(run, metric)
    if value is None and _within(run.results, metric) is not None:
        numbers = [key for key, value in run.results.items() if type(value) in (int, float)]
        raise UserError(f'{run.path} has no number "{metric}"{suggest(metric, numbers)}')
    return value


def _within(results: Mapping[str, Any], metric: str) -> Any:
    """Return what stands under the key; None where it, or what it lies within, was not measured; the key if it is
    unknown."""
    value: Any = results
    for key in metric.split("."):
        if value is None:
            break
        value = value.get(key, metric) if isinstance(value, Mapping) else metric
    return value


def default_by(runs: Sequence[Finished]) -> list[str]:
    """Return the key to show sections for where none is asked for: the memory's size, if methods that use it have
    several."""
    sizes = {shown(run.value("memory.budget")) for run in runs if not without_memory(run)}
    return ["memory.budget"] if len(sizes) > 1 else []


def sections(runs: Sequence[Finished], by: Sequence[str], over: Sequence[str]) -> list[Section]:
    """Return the runs in sections and rows.

    A run whose method does not know a key of ``by`` (a method's option; the memory, where it keeps none) is in every
    section. Settings other than those of ``by`` and ``over`` that differ within a method make rows of their own.

    Args:
        by: config keys; a section for each of their combinations.
        over: config keys of repetitions, such as ``seed``.
    """
    for key in (*by, *over):
        if all(_place(run, key) is None for run in runs):
            known = {name for run in runs for name in run.config}
            raise UserError(f'no run has the key "{key}"{suggest(key, known)}')
    placed = [(run, tuple(_place(run, key) for key in by)) for run in runs]
    whole = [place for _, place in placed if ANY not in place] or [place for _, place in placed]
    places = {json.dumps(place, default=lambda value: "any"): place for place in whole}
    ordered = sorted(places.values(), key=lambda place: [natural(shown_any(value)) for value in place])
    return [
        Section(
            dict(zip(by, place, strict=True)),
            _rows([run for run, at in placed if _fits(at, place)], by, over),
        )
        for place in ordered
    ]


def shown_any(value: Any) -> str:
    """Return a value as it is written, ``any`` for what makes no difference."""
    return "any" if value is ANY else shown(value)


def _fits(at: Sequence[Any], place: Sequence[Any]) -> bool:
    return all(mine is ANY or mine == theirs for mine, theirs in zip(at, place, strict=True))


def _place(run: Finished, key: str) -> Any:
    if key.startswith("memory.") and without_memory(run):
        return ANY
    if key.startswith("method.") and key not in run.config:
        return ANY
    return run.value(key)


def _rows(runs: Sequence[Finished], by: Sequence[str], over: Sequence[str]) -> list[Row]:
    """Return the rows of one section, the pretrained model's first where no run of it is there, in the order of
    labels."""
    rows: dict[str, Row] = {}
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        options = varying(own, {*by, *over})
        for run in own:
            row = Row(method, {key: run.config.get(key) for key in options})
            row = rows.setdefault(row.label, row)
            repetition = tuple(shown(run.value(key)) for key in over)
            twin = row.runs.setdefault(repetition, run)
            if twin is not run and not without_memory(run):
                log.warning("%s repeats %s: left out", run.path, twin.path)
    if not any(row.method == REFERENCES[0] for row in rows.values()):
        recorded: dict[Repetition, Finished] = {}
        for run in runs:
            if run.results.get("zero_shot") is not None and run.results.get("zero_shot_after_stage"):
                recorded.setdefault(tuple(shown(run.value(key)) for key in over), run)
        if recorded:  # features may come without text
            rows[REFERENCES[0]] = Row(REFERENCES[0], {}, recorded, recorded=True)
    return sorted(rows.values(), key=lambda row: order(row.method, row.label))


def settings(row: Row) -> dict[str, Any]:
    """Return the config keys in which all runs of a row agree, with their values."""
    configs = [] if row.recorded else [run.config for run in row.runs.values()]
    return {
        key: value
        for key, value in (configs[0] if configs else {}).items()
        if all(key in config and config[key] == value for config in configs)
    }


def cost(row: Row, unit: str) -> float:
    """Average cost of a row's runs, in a unit of ``COSTS``."""
    return fmean(sum(run.results.get(key) or 0 for key in COSTS[unit]) for run in row.runs.values())


def kept_by(row: Row) -> dict[str, float] | None:
    """Return bytes of images and of state that a row's runs keep beside the model, on average; None where not known."""
    found = [
        both for run in row.runs.values() if not row.recorded and (both := kept(run.results)) is not None
    ]
    if not found:
        return None
    images, state = zip(*found, strict=True)
    return {"image_bytes": fmean(images), "state_bytes": fmean(state)}


def amount(cost: float, unit: str) -> str:
    """Return a cost with its unit: ``0.50 MB``."""
    return f"{cost / 1e6:,.2f} MB" if unit == "bytes" else f"{cost:,.0f} {unit}"


COSTS: Mapping[str, tuple[str, ...]] = {
    "bytes": ("memory_bytes", "state_bytes"),
    "steps": ("optimizer_steps",),
    "samples": ("samples_seen",),
}
"""Units of ``equal``, and the keys of results.json that they sum."""
_LENGTH = ("memory.", "train.steps", "train.epochs", "train.batch_size")
_TOLERANCE = 1.01


def at_equal_cost(sections: Sequence[Section], unit: str, against: str | None) -> list[Section]:
    """Return each section anew for each level of cost: there every method enters with its dearest row that costs no
    more.

    Levels are the costs of the rows of ``against``, else of all rows that are no references (which enter everywhere).
    Two rows cost the same within 1 %. A level that shows the rows of the one before, or one row only, is left out.
    """
    made: list[Section] = []
    for section in sections:
        rivals = [row for row in section.rows if not row.reference]
        asked = [row for row in rivals if against in (None, row.method, row.label)]
        before: list[Row] = []
        for level in sorted({cost(row, unit) for row in asked}):
            best: dict[str, Row] = {}
            for row in sorted(rivals, key=lambda row: cost(row, unit)):
                if cost(row, unit) <= level * _TOLERANCE:
                    kept = {key: v for key, v in row.options.items() if not key.startswith(_LENGTH)}
                    best[Row(row.method, kept).label] = row
            chosen = [row for row in section.rows if row.reference or row in best.values()]
            if len(best) > 1 and chosen != before:
                made.append(Section(section.by | {"cost": f"at most {amount(level, unit)}"}, chosen))
                before = chosen
    if not made:
        raise UserError(f"--equal {unit}: no two methods can be compared at the same cost")
    return made


def check(sections: Sequence[Section], by: Sequence[str], over: Sequence[str]) -> None:
    """Refuse runs that are not comparable: within a section, and across sections but for what ``by`` changes.

    Raises:
        UserError: naming what differs, in which runs.
    """
    repeated = set().union(*map(excused, over))
    shown_by = set().union(*map(excused, by))
    groups = [
        (list(dict.fromkeys(run for row in section.rows for run in row.runs.values())), repeated)
        for section in sections
    ]
    everything = list(dict.fromkeys(run for group, _ in groups for run in group))
    for some, excuses in [*groups, (everything, repeated | shown_by)]:
        if words := difference(some, excuses):
            key = hint(words.partition(" (")[0], some)
            apart = f"--by {key}, " if key else ""
            raise UserError(f"these runs differ in {words}: compare them separately, {apart}or use --anyway")
