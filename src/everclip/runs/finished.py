"""Read finished runs for comparisons and ``everclip.load_runs``. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everclip.config.values import flat
from everclip.errors import shown
from everclip.runs.schema import LEAST, test_images
from everclip.runs.schema import read as read_results
from everclip.system import trust
from everclip.system.arrays import MOST_COLUMNS, MOST_ROWS, Shape, read_columns
from everclip.system.kinds import COUNT, Kind, text
from everclip.system.reading import TOML_BYTES, Unreadable, parse_toml, read_text, readable
from everclip.system.text import cleaned

_NAMES = {"memory.budget": "memory_budget", "scenario.kind": "scenario", "train.captions": "train_captions"}
"""Keys of results.json that have another name in the config."""
_WORDS = ("none", "auto")
_CONFIG: dict[str, Kind] = {
    "seed": lambda value: COUNT(value) or text(value),
    **dict.fromkeys(("method", "tuned_on"), text),
    "memory.budget": lambda value: COUNT(value) or value in ("all", *_WORDS),
    "memory.per_class": lambda value: COUNT(value) or value in _WORDS,
}
"""Kinds of the config values that comparisons compute with; other values are only shown and compared."""


@dataclass(frozen=True, eq=False, repr=False)
class Finished:
    """A finished run; usable as its path."""

    path: Path  # its directory
    results: dict[str, Any]  # results.json (docs/results.md)
    # config.toml, flat: ``{"memory.budget": 200, "method": "gdro", ...}``; empty without a file
    config: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        known = {key: self.results[key] for key in ("method", "data", "last") if key in self.results}
        parts = [repr(str(self.path)), *(f"{key}={value!r}" for key, value in known.items())]
        return f"Finished({', '.join(parts)})"

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.value("method") or "unknown method")

    @property
    def told(self) -> Mapping[str, Any]:
        """Its results, and what else is known of its classes and tasks."""
        return self.results

    def value(self, key: str) -> Any:
        """Return ``key`` of the config, else of results.json, else None; for a memory per class, its whole budget."""
        if key == "memory.per_class" and key not in self.config and self.config.get("memory.budget") == 0:
            return 0  # a sweep writes keeping nothing as a budget of 0
        if key == "memory.budget" and isinstance(self.config.get("memory.per_class"), int):  # no "none"
            return self.results.get("memory_budget")
        return self.config[key] if key in self.config else self.results.get(_NAMES.get(key, key))


def natural(name: str) -> list[str | tuple[int, str]]:
    """Return a sort key that puts s2 before s10."""
    parts = [part.lstrip("0") if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    # not as numbers: Python refuses texts of very many digits
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def read(path: Path) -> Finished:
    """Return the finished run in a directory. Raises UserError where a file of it cannot be read."""
    return Finished(path, read_results(path / "results.json", LEAST), read_config(path)[1])


def read_config(run: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a run's config.toml, and its content, flat and printable; both empty without a file.

    Raises:
        UserError: it cannot be read.
    """
    path = run / "config.toml"
    if not path.exists():
        return "", {}
    with readable(path, "restore it, or leave the run out"):
        content = read_text(path, TOML_BYTES)
        tables = cleaned(parse_toml(content))
        trust.asked(tables, path)  # so that nothing that it names is imported later on
        found = {key: _finite(value) for key, value in flat(tables).items()}
        for key, fits in _CONFIG.items():
            if key in found and not fits(found[key]):
                raise Unreadable(f"its {key} is {shown(found[key])}, which it cannot be")
    return content, found


def _finite(value: Any) -> Any:
    """Return a value with each infinite number or nan as a text, which JSON has and which equals itself."""
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def answers(path: Path, most: int) -> dict[str, NDArray[Any]] | None:
    """Return the columns of a run's predictions.npz, one row per test image after the last task; None without it.

    ``id`` and ``label`` are ``[n]``, ``top`` ``[n, k]`` labels, best first; ``margin`` and ``confidence`` ``[n]``,
    where they were recorded (docs/results.md).

    Args:
        most: the largest possible number of test images; never more than ``MOST_ROWS`` are read.

    Raises:
        UserError: the file cannot be read, or has impossible values.
    """
    path = path / "predictions.npz"
    if not path.exists():
        return None
    most = min(most, MOST_ROWS)
    each, several = (most,), (most, MOST_COLUMNS)
    needed = {"id": Shape("iu", each), "label": Shape("i", each), "top": Shape("i", several)}
    more = {"margin": Shape("f", each), "confidence": Shape("f", each)}
    with readable(path, "restore it, or remove it"):
        found = read_columns(path, needed, more, most)
        sure = found.get("confidence", np.zeros(1))
        if np.isnan(found.get("margin", np.zeros(1))).any() or not ((sure >= 0) & (sure <= 1)).all():
            raise Unreadable("a margin or a confidence is out of range")
    return found


def right_both(first: Finished, second: Finished) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return whether each answer of two runs on the same images is right: ``[n]`` each, in the order of ids.

    None where the images differ, or a run has no predictions.npz. Raises UserError where that cannot be read.
    """
    one, other = (answers(run.path, test_images(run.results)) for run in (first, second))
    if one is None or other is None or not np.array_equal(np.sort(one["id"]), np.sort(other["id"])):
        return None
    return right(one), right(other)


def right(found: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return whether each of a run's ``answers`` is right: ``[n]``, in the order of ids."""
    return (found["top"][:, 0] == found["label"])[found["id"].argsort()]
