"""Write numbers, settings and facts as words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from everclip.metrics.stats import by_chance

Mood = Literal["better", "worse", "level"]

_LISTS = {"templates": "template", "class order": "class", "task order": "task"}
"""Facts that are lists, and what they are lists of."""
_RIVALS = {"known": "each among the classes of its own task", "unknown": "among the classes of all tasks"}


def percent(value: float | None) -> str:
    """Return a fraction as ``71.2 %``; an en dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """Return a signed difference of fractions in percentage points, with a true minus sign."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def size(value: float | None) -> str:
    """Return bytes in decimal units: ``12.3 MB``."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def kept_words(images: float, state: float) -> str:
    """Say what is kept beside the model: ``480.3 kB of images + 13.1 MB of state``."""
    return f"{size(images)} of images + {size(state)} of state"


def headline(last: float, base: float, images: int) -> tuple[Mood, str]:
    """Compare an accuracy with zero-shot's on the same test images, neutrally where the gap may be chance."""
    gap = last - base
    if abs(gap) <= by_chance(last, base, images) or abs(gap) < 5e-4:
        return "level", "No better than zero-shot"
    if gap > 0:
        return "better", f"{100 * gap:.1f} points better than zero-shot"
    return "worse", f"Worse than zero-shot by {-100 * gap:.1f} points: training did harm"


def noise(last: float, base: float, images: int) -> str:
    """Say which gaps may be chance with this number of test images."""
    least = 100 * by_chance(last, base, images)
    return f"With {images:,} test images a gap below {least:.1f} points may be chance."


def rivals(task_ids: Iterable[str | None]) -> str:
    """Say among which classes test images are classified, by ``scenario.task_id`` of the runs that tell it."""
    return next((_RIVALS[one] for one in task_ids if one in _RIVALS), "among all classes learned by then")


def duration(seconds: float | None) -> str:
    """Return seconds as ``8.4 s``, ``6.9 min`` or ``2.1 h``."""
    if seconds is None:
        return "–"
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} s"


def count(value: float | None) -> str:
    """Return a whole number with commas at the thousands."""
    return "–" if value is None else f"{value:,.0f}"


def plain(value: Any) -> str:
    """Return a config value as on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def several(number: int, word: str) -> str:
    """Return ``1 run``, ``2 runs``, ``2 classes``."""
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('s') else 's'}"


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first ``most`` names, and how many more there are."""
    texts = [*map(str, names)]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def share(value: float | None) -> str:
    """Return a fraction in percent without the sign: ``71.2``."""
    return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


_KINDS = (percent, share, points, size, duration, count)
SHOW: dict[str, Callable[[float | None], str]] = {show.__name__: show for show in _KINDS}
"""Kinds of numbers in tables, by name."""


def fact(key: str, value: Any) -> str:
    """Return a fact in words; lists as their length."""
    name = key.replace("_", " ")
    if value is None:
        return f"{name} unknown"
    if key == "test counts":
        return f"{sum(value)} test images"
    if key in _LISTS:
        by_seed = isinstance(value, dict)
        names = value["by the seed"] if by_seed else value
        first = "by the seed" if by_seed else f"{names[0]} first"
        return several(len(names), _LISTS[key]) + (f", {first}" if key == "class order" else "")
    words = {
        "image_size": f"{value} px",
        "validation": "test images" if value == "none" else f"validation fraction {value}",
        "smoke": "trial runs" if value else "full runs",
    }
    named = key.startswith(("source.", "scenario.", "validation", "schema"))
    other = f"{name} {plain(value)}" if named else str(value)
    return words.get(key, other)
