"""Read the times of a list: numbers, or dates as ISO 8601 writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from everclip.errors import UserError, shown
from everclip.system.text import number_in

TIME = ("time", "date", "timestamp")
"""Names of a column of times; data with labels are read for it only where times are asked for."""


def numbered(texts: Iterable[str], where: str) -> NDArray[np.float64]:
    """Return times as numbers that can be compared, float64 ``[n]``: all numbers as they are, or all dates in seconds.
    Raises UserError for anything else, or both.

    A date without a time of day means the start of that day, and one without a zone is in UTC.
    """
    found: list[float] = []
    kinds: dict[str, str] = {}
    for text in texts:
        value = number_in(text)
        kind = "a number"
        if value is None:
            value, kind = _seconds(text), "a date"
        if value is None or not math.isfinite(value):
            raise UserError(f"{where} has the time {shown(text)}: use a number, or a date such as 2024-05-31")
        kinds.setdefault(kind, text)
        if len(kinds) > 1:
            mixed = " and ".join(map(shown, kinds.values()))
            raise UserError(f"{where} has the times {mixed}: use numbers alone, or dates alone")
        found.append(value)
    return np.array(found, dtype=np.float64)


def _seconds(text: str) -> float | None:
    """Return seconds since 1970 of a date; None for anything else."""
    try:
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
