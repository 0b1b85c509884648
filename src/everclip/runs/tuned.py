"""Read the search that ``tuned_on`` records, of a config or of results.json."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from everclip.config.sources import read_value
from everclip.runs.words import plain
from everclip.system.text import number_in

_KEY = re.compile(r"([\w.]+) (.+)")
_SCORE = re.compile(r"-|\d\.\d+")
_SHARE = re.compile(r", tasks 1-\d+, (\S+) of their training images, ")
_TRIALS = re.compile(r", (\d+) of (\d+) trials(?: \(still at the edge of its grid: ([^)]+)\))?")
_MOST = 100_000
"""Largest length of a record that is read."""


class Searched(NamedTuple):
    """A search: key -> value -> score; the fraction of the images that it scored on; its number of trials in words, if
    known; and the keys whose best value lies at an edge of a grid that could grow."""

    tried: dict[str, dict[str, float | None]]
    share: float | None
    trials: str
    edges: list[str]

    def chose(self, key: str, value: Any) -> bool:
        """Return whether a config's value of a key is the best of those tried, or one of several best."""
        scores = self.tried[key]
        own, finite = meant(scores, value), [score for score in scores.values() if score is not None]
        return own is not None and bool(finite) and scores[own] == max(finite)


def searched(text: str | None) -> Searched | None:
    """Return the search that ``tuned_on`` records; None for another text."""
    if text is None or len(text) > _MOST:
        return None
    head, *parts = text.split("; ")
    tried: dict[str, dict[str, float | None]] = {}
    for part in parts:
        key = _KEY.fullmatch(part)
        scores = _scores(key[2]) if key else {}
        if key is None or not scores:
            return None
        tried[key[1]] = scores
    if not tried:
        return None
    share, counted = _SHARE.search(head), _TRIALS.search(head)
    if counted is not None:
        trials, edges = f"{counted[1]} of {counted[2]}", (counted[3] or "").split(", ")
    else:  # of grids that do not grow
        trials, edges = "", [key for key, scores in tried.items() if beyond([*scores], _best(scores))]
    return Searched(tried, number_in(share[1]) if share else None, trials, [key for key in edges if key])


def _scores(text: str) -> dict[str, float | None]:
    """Return the values in ``VALUE: SCORE, VALUE: SCORE``; a value may hold commas and colons itself."""
    found: dict[str, float | None] = {}
    begun: list[str] = []
    for part in text.split(", "):
        end, colon, score = part.rpartition(": ")
        if colon and _SCORE.fullmatch(score) and (value := ", ".join([*begun, end])):
            found[value] = None if score == "-" else float(score)
            begun = []
        else:
            begun.append(part)
    return found


def _best(scores: dict[str, float | None]) -> str:
    """Return the value with the best score, at a tie the first."""
    return max(scores, key=lambda value: -1.0 if (score := scores[value]) is None else score)


def meant(words: Iterable[str], value: Any) -> str | None:
    """Return the first command-line word that means a value of a config, if any does."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    for word in words:
        own = number_in(word)
        if own is not None and number is not None:
            if math.isclose(own, number):
                return word
        elif word == plain(value) or read_value("", word, None) == value:
            return word
    return None


def beyond(values: Sequence[str], winner: str) -> str | None:
    """Return the next value beyond the edge of a grid if the winner lies there, continuing the ratio of the last step.

    The grid is ordered by its numbers; words in it ("none", "gcv") do not count. None where the winner is a word, or
    lies inside, or where the two numbers at the edge are not above 0.
    """
    found = {number: text for text in values if (number := number_in(text)) is not None}
    numbers = sorted((number, text) for number, text in found.items() if math.isfinite(number))
    own = number_in(winner)
    if len(numbers) < 2 or own not in (numbers[0][0], numbers[-1][0]):
        return None
    (first, _), (second, _) = numbers[:-3:-1] if own == numbers[-1][0] else numbers[:2]
    if first <= 0 or second <= 0:
        return None
    further = first * first / second
    if not math.isfinite(further):
        return None
    whole = all(text.isdecimal() for _, text in numbers)
    text = str(max(1, round(further))) if whole else f"{further:.3g}"
    return None if any(number_in(text) == number for number, _ in numbers) else text
