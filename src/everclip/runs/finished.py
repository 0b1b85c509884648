"""Find finished runs and read them: what comparisons, and ``everclip.load_runs``, start from.

Nothing here imports torch.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
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
from everclip.system.reading import Unreadable, read_toml
from everclip.system.text import cleaned

log = logging.getLogger("everclip")

_NAMES = {"memory.budget": "memory_budget", "scenario.kind": "scenario", "train.captions": "train_captions"}
"""Where results.json has a key of the config under another name."""

Place = str | os.PathLike[str]


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

    def value(self, key: str) -> Any:
        """``key`` of the config, else what results.json says of it, else None. The budget of a memory per class is
        what that comes to."""
        if key == "memory.per_class" and key not in self.config and self.config.get("memory.budget") == 0:
            return 0  # a sweep writes nothing kept as a budget of 0
        if key == "memory.budget" and self.config.get("memory.per_class") is not None:
            return self.results.get("memory_budget")
        return self.config[key] if key in self.config else self.results.get(_NAMES.get(key, key))


def find_runs(paths: Iterable[Place]) -> list[Finished]:
    """The finished runs that paths, folders and patterns name, each once, sorted by path (numbers as numbers).

    Raises:
        UserError: a results.json or config.toml cannot be read.
    """
    found: dict[Path, Finished] = {}
    none: list[str] = []
    for path in paths:
        text = os.path.expanduser(path)
        matches = sorted(glob.glob(text)) if glob.has_magic(text) else [text]
        if not matches:
            log.warning("%s matches nothing", text)
        for match in map(Path, matches):
            folders = _folders(match)
            if folders is None:
                none.append(str(match))
            for folder in folders or ():
                if folder.resolve() not in found:
                    found[folder.resolve()] = read(folder)
    if none:
        more = f", and {len(none) - 5} more" if len(none) > 5 else ""
        log.warning("no run, left out: %s%s", ", ".join(none[:5]), more)
    return sorted(found.values(), key=lambda run: natural(str(run.path)))


def _folders(path: Path) -> list[Path] | None:
    """The folders of finished runs at a path, which may be one or hold some; None where there is no run at all."""
    if (path / "results.json").is_file():
        return [path]
    if (path / "config.toml").is_file():
        log.warning("not finished, left out: %s", path)
        return []
    inside = list(path.iterdir()) if path.is_dir() else []
    runs = [
        folder
        for folder in inside
        if any((folder / name).is_file() for name in ("config.toml", "results.json"))
    ]
    finished = [folder for folder in runs if (folder / "results.json").is_file()]
    if len(finished) < len(runs):
        log.warning(
            "not finished, left out: %d of the %d runs in %s", len(runs) - len(finished), len(runs), path
        )
    return finished if runs else None


def natural(text: str) -> list[str | int]:
    """A sort key with which s2 comes before s10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def read(path: Path) -> Finished:
    """The finished run in a directory. Raises UserError where its results.json or config.toml cannot be read."""
    results = read_results(path / "results.json", LEAST)
    config = path / "config.toml"
    return Finished(path, results, flat(read_config(config)) if config.exists() else {})


def read_config(path: Path) -> dict[str, Any]:
    """The tables of a run's config.toml, their texts printable. Raises UserError where it cannot be read."""
    try:
        return cleaned(read_toml(path))
    except Unreadable as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or leave the run out") from error


def answers(path: Path, most: int) -> dict[str, NDArray[Any]] | None:
    """The columns of a run's predictions.npz, one row per test image after the last task; None where there is none.

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
            raise Unreadable("a margin or a confidence is no number that can be")
    except Unreadable as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or remove it") from error
    return found


def right(run: Finished) -> dict[int, bool] | None:
    """Return whether each test image (by its id) was told right after the last stage; None without predictions.npz.

    Raises:
        UserError: that file cannot be read.
    """
    found = answers(run.path, test_images(run.results))
    if found is None:
        return None
    told = found["top"][:, 0] == found["label"]
    return dict(zip(found["id"].tolist(), told.tolist(), strict=True))


def right_both(first: Finished, second: Finished) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Two runs' answers on the same images: ``[n]``, whether each is right; None where the images differ."""
    one, other = right(first), right(second)
    if one is None or other is None or one.keys() != other.keys():
        return None
    ids: Sequence[int] = sorted(one)
    return np.array([one[i] for i in ids]), np.array([other[i] for i in ids])
