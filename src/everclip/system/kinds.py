"""Check the types of values from untrusted files. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Kind = Callable[[Any], bool]


def number(low: float, high: float) -> Kind:
    """Accept a number from ``low`` to ``high``; no truth value, and not NaN."""

    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return fits


def whole(high: int) -> Kind:
    """Accept a whole number from 0 to ``high``."""
    return lambda value: type(value) is int and 0 <= value <= high


def text(value: Any) -> bool:
    """Accept a text."""
    return isinstance(value, str)


def truth(value: Any) -> bool:
    """Accept true or false."""
    return isinstance(value, bool)


def or_null(kind: Kind) -> Kind:
    """Accept ``kind``, or null."""
    return lambda value: value is None or kind(value)


def listed(kind: Kind, most: int) -> Kind:
    """Accept a list of at most that length."""
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(kind, value))


def mapped(kind: Kind, most: int) -> Kind:
    """Accept an object of at most that number of keys."""
    return lambda value: isinstance(value, dict) and len(value) <= most and all(map(kind, value.values()))


def table(needed: Mapping[str, Kind], more: Mapping[str, Kind] | None = None) -> Kind:
    """Accept an object with these keys, and perhaps some of ``more``; others are not looked at."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(key in value and kind(value[key]) for key, kind in needed.items())
            and all(key not in value or kind(value[key]) for key, kind in (more or {}).items())
        )

    return fits


SLACK = 1e-9
"""Amount by which rounding may push a mean out of its range."""
SHARE = number(-SLACK, 1 + SLACK)
CHANGE = number(-1 - SLACK, 1 + SLACK)
AMOUNT = number(0, 1e18)
COUNT = whole(10**18)
