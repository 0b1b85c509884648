"""Load finished runs as plain dictionaries or a table: what ``everclip.load_runs`` gives, and comparisons start from.

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
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from everclip.config.values import flat
from everclip.errors import UserError
from everclip.runs.schema import LEAST, test_images
from everclip.runs.schema import read as read_results
from everclip.system.arrays import read_columns
from everclip.system.reading import Unreadable, read_toml
from everclip.system.text import cleaned

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("everclip")

_NAMES = {"memory.budget": "memory_budget", "scenario.kind": "scenario", "train.captions": "train_captions"}
"""Where results.json has a key of the config under another name."""

Place = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run.

    Args:
        path: its directory.
        results: results.json (docs/results.md).
        config: config.toml, flat: ``{"memory.budget": 200, "method": "gdro", "method.margin": 0.3, ...}``; empty where
            there is none.
    """

    path: Path
    results: dict[str, Any]
    config: dict[str, Any]

    def value(self, key: str) -> Any:
        """``key`` of the config, else what results.json says of it, else None. The budget of a memory per class is
        what that comes to."""
        if key == "memory.per_class" and key not in self.config and self.config.get("memory.budget") == 0:
            return 0  # a sweep writes nothing kept as a budget of 0
        if key == "memory.budget" and self.config.get("memory.per_class") is not None:
            return self.results.get("memory_budget")
        return self.config[key] if key in self.config else self.results.get(_NAMES.get(key, key))


@overload
def load_runs(
    paths: Place | Iterable[Place], *, as_pandas: Literal[False] = False
) -> list[dict[str, Any]]: ...


@overload
def load_runs(paths: Place | Iterable[Place], *, as_pandas: Literal[True]) -> pandas.DataFrame: ...


def load_runs(
    paths: Place | Iterable[Place], *, as_pandas: bool = False
) -> list[dict[str, Any]] | pandas.DataFrame:
    """One dictionary per finished run, sorted by path: ``path``, the numbers and texts of results.json under its keys
    (``last``, ``average``, ``method``, ``seed``, ...), and the config's under dotted keys (``memory.budget``,
    ``train.lr``, ``method.margin``, ...).

    Args:
        paths: run directories, folders of run directories (a sweep's ``out``), or patterns such as ``"runs/*"``.
            What is no finished run is left out, with a line on the log.
        as_pandas: give a pandas DataFrame, one row per run.

    Raises:
        UserError: a results.json or config.toml cannot be read, or pandas is wanted and not installed.
    """
    rows = [_row(run) for run in find_runs([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not as_pandas:
        return rows
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise UserError(
            'as_pandas=True needs pandas: pip install "everclip[pandas]", or leave it out'
        ) from error
    return DataFrame(rows)


def _row(run: Finished) -> dict[str, Any]:
    plain = {key: value for key, value in run.config.items() if "." in key or key not in run.results}
    return {"path": str(run.path)} | {
        key: value
        for key, value in (run.results | plain).items()
        if value is None or isinstance(value, bool | int | float | str)
    }


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


def right(run: Finished) -> dict[int, bool] | None:
    """Return whether each test image (by its id) was told right after the last stage; None without predictions.npz.

    Raises:
        UserError: that file cannot be read.
    """
    path, form = run.path / "predictions.npz", {"id": ("iu", 1), "label": ("i", 1), "top": ("i", 2)}
    if not path.exists():
        return None
    try:
        file = read_columns(path, form, most=test_images(run.results))
    except Unreadable as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or remove it") from error
    told = file["top"][:, 0] == file["label"]
    return dict(zip(file["id"].tolist(), told.tolist(), strict=True))


def right_both(first: Finished, second: Finished) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Two runs' answers on the same images: ``[n]``, whether each is right; None where the images differ."""
    one, other = right(first), right(second)
    if one is None or other is None or one.keys() != other.keys():
        return None
    ids: Sequence[int] = sorted(one)
    return np.array([one[i] for i in ids]), np.array([other[i] for i in ids])
