"""Read the search that ``tuned_on`` records, of a config or of results.json."""

from __future__ import annotations

import re
from typing import NamedTuple

_KEY = re.compile(r"([\w.]+) (.+)")
_VALUE = re.compile(r"(.+?): (-|\d\.\d+)(?:, |$)")
_TRIALS = re.compile(r", (\d+) of (\d+) trials")


class Searched(NamedTuple):
    """A search: key -> value -> score, and its number of trials in words, if known."""

    tried: dict[str, dict[str, float | None]]
    trials: str


def searched(text: str | None) -> Searched | None:
    """Return the search that ``tuned_on`` records; None for another text."""
    head, *parts = (text or "").split("; ")
    tried: dict[str, dict[str, float | None]] = {}
    for part in parts:
        key = _KEY.fullmatch(part)
        scores = _VALUE.findall(key[2]) if key else []
        if key is None or not scores:
            return None
        tried[key[1]] = {value: None if score == "-" else float(score) for value, score in scores}
    counted = _TRIALS.search(head)
    return Searched(tried, f"{counted[1]} of {counted[2]}" if counted else "") if tried else None
