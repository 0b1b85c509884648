"""Read finished runs for comparisons and ``everclip.load_runs``. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everclip.config.values import flat
from everclip.errors import UserError
from everclip.runs.schema import LEAST, test_images
from everclip.runs.schema import read as read_results
from everclip.system.arrays import Form, read_columns
from everclip.system.reading import TOML_BYTES, Unreadable, parse_toml, read_text
from everclip.system.text import cleaned

_NAMES = {"memory.budget": "memory_budget", "scenario.kind": "scenario", "train.captions": "train_captions"}
"""Keys of results.json that have another name in the config."""


@dataclass(frozen=True, eq=False, repr=False)
class Finished:
    """A finished run; it goes wherever its path goes.

    Args:
        path: its directory.
        results: results.json (docs/results.md).
        config: config.toml, flat: ``{"memory.budget": 200, "method": "gdro", "method.margin": 0.3, ...}``; empty where
            there is none.
    """

    path: Path
    results: dict[str, Any]
    config: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        known = ", ".join(
            f"{key}={self.results[key]!r}" for key in ("method", "data", "last") if key in self.results
        )
        return f"Finished({str(self.path)!r}, {known})"

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.value("method") or "unknown method")

    @property
    def told(self) -> Mapping[str, Any]:
        """What is known of its classes and tasks, and its results."""
        return self.results

    def value(self, key: str) -> Any:
        """Return ``key`` of the config, else what results.json says of it, else None. The budget of a memory per class
        is what that comes to."""
        if key == "memory.per_class" and key not in self.config and self.config.get("memory.budget") == 0:
            return 0  # a sweep writes nothing kept as a budget of 0
        if key == "memory.budget" and self.config.get("memory.per_class") is not None:
            return self.results.get("memory_budget")
        return self.config[key] if key in self.config else self.results.get(_NAMES.get(key, key))


def natural(text: str) -> list[str | int]:
    """Return a sort key with which s2 comes before s10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def read(path: Path) -> Finished:
    """Return the finished run in a directory. Raises UserError where its results.json or config.toml cannot be read."""
    return Finished(path, read_results(path / "results.json", LEAST), read_config(path)[1])


def read_config(run: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a run's config.toml, and its content, flat and printable; both empty where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = run / "config.toml"
    if not path.exists():
        return "", {}
    try:
        text = read_text(path, TOML_BYTES)
        return text, flat(cleaned(parse_toml(text)))
    except Unreadable as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or leave the run out") from error


def answers(path: Path, most: int) -> dict[str, NDArray[Any]] | None:
    """Return the columns of a run's predictions.npz, one row per test image after the last task; None where there is
    none.

    ``id`` and ``label`` are ``[n]``, ``top`` ``[n, k]`` labels, best first; ``margin`` and ``confidence`` ``[n]``,
    where they were recorded (docs/results.md).

    Args:
        most: test images that there may be.

    Raises:
        UserError: that file cannot be read, or holds what cannot be.
    """
    path = path / "predictions.npz"
    needed: dict[str, Form] = {"id": ("iu", 1), "label": ("i", 1), "top": ("i", 2)}
    more: dict[str, Form] = {"margin": ("f", 1), "confidence": ("f", 1)}
    if not path.exists():
        return None
    try:
        found = read_columns(path, needed, more, most)
        sure = found.get("confidence", np.zeros(1))
        if np.isnan(found.get("margin", np.zeros(1))).any() or not ((sure >= 0) & (sure <= 1)).all():
            raise Unreadable("a margin or a confidence is out of range")
    except Unreadable as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or remove it") from error
    return found


def right_both(first: Finished, second: Finished) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return two runs' answers on the same images after the last stage: ``[n]``, whether each is right, in the order of
    ids; None where the images differ, or one has no predictions.npz. Raises UserError where that cannot be read.
    """
    one, other = (answers(run.path, test_images(run.results)) for run in (first, second))
    if one is None or other is None or not np.array_equal(np.sort(one["id"]), np.sort(other["id"])):
        return None
    told = [(found["top"][:, 0] == found["label"])[found["id"].argsort()] for found in (one, other)]
    return told[0], told[1]
