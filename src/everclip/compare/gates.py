"""Check conditions under which a comparison fails: ``gdro<gcl``, ``method=gdro memory.budget=0 last<0.8``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from operator import ge, gt, le, lt
from typing import Any

from everclip.compare.comparable import shown
from everclip.errors import UserError
from everclip.system.text import number_in

Json = dict[str, Any]

_COMPARES = {"<=": le, ">=": ge, "<": lt, ">": gt}
_CONDITION = re.compile(r"([^<>]+?) ?(<=|>=|<|>) ?([^<>=][^<>]*)")


def metrics_of(condition: str) -> list[str]:
    """Return the metric that a condition names, if any. Raises UserError where the condition cannot be read."""
    _, left, _, right = _parse(condition)
    return [left] if number_in(right) is not None else []


def broken(condition: str, comparison: Json) -> list[str]:
    """List where the condition holds: a line per section or row, with the means.

    Args:
        condition: ``KEY=VALUE ...`` to select sections and rows, then ``A<B`` for two rows' means of the first
            metric, or ``METRIC<NUMBER`` (a fraction for accuracies).

    Raises:
        UserError: it cannot be read, or matches no row: a gate never passes unchecked.
    """
    wanted, left, sign, right = _parse(condition)
    limit, first, holds = number_in(right), comparison["metrics"][0], _COMPARES[sign]
    lines: list[str] = []
    asked = 0
    for section in comparison["sections"]:
        rows = [row for row in section["rows"] if _about(wanted, row, section["by"])]
        place = " ".join(f"{key}={shown(value)}" for key, value in section["by"].items())
        at = f" at {place}" if place else ""
        if limit is not None:
            for name, mean in _means(rows, left, lambda row: bool(wanted) or not row["reference"]):
                asked += 1
                lines += [f"{name}: {left} {mean:.4g} {sign} {right}{at}"] * holds(mean, limit)
            continue
        for name, mean in _means(rows, first, lambda row: left in (row["label"], row["method"])):
            for other, theirs in _means(rows, first, lambda row: right in (row["label"], row["method"])):
                asked += 1
                lines += [f"{first} of {name} {mean:.4g} {sign} {theirs:.4g} of {other}{at}"] * holds(
                    mean, theirs
                )
    if not asked:
        raise UserError(f'--fail-if "{condition}" matches no row of the table: check its names')
    return lines


def _means(rows: Sequence[Json], metric: str, wanted: Callable[[Json], bool]) -> list[tuple[str, float]]:
    """Return label and mean of each wanted row that has the metric."""
    return [
        (row["label"], row["metrics"][metric]["mean"])
        for row in rows
        if wanted(row) and row["metrics"].get(metric) is not None
    ]


def _about(wanted: Mapping[str, str], row: Json, by: Json) -> bool:
    known = row["settings"] | {"method": row["method"]} | by
    return all(key in known and shown(known[key]) == value for key, value in wanted.items())


def _parse(condition: str) -> tuple[dict[str, str], str, str, str]:
    """Return the condition's KEY=VALUE words, left side, sign and right side."""
    words = condition.split()
    filters = list(takewhile(lambda word: "=" in word and not set(word) & {"<", ">"}, words))
    match = _CONDITION.fullmatch(" ".join(words[len(filters) :]))
    if match is None or math.isnan(number_in(match[3]) or 0):  # nothing is below or above nan
        raise UserError(
            f'--fail-if "{condition}" is not a condition: use "gdro<gcl", or "method=gdro last<0.8"'
        )
    wanted = {key: value for key, _, value in (word.partition("=") for word in filters)}
    return wanted, match[1], match[2], match[3]
