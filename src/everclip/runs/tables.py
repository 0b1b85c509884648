"""Load finished runs as dictionaries and data frames: ``everclip.load_runs`` and its kin. Imports no torch.

Wherever a run is expected, the return value of ``everclip.train`` works as well as a directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from everclip.errors import UserError, needing
from everclip.runs.find import Place, find_runs
from everclip.runs.finished import Finished, answers
from everclip.runs.schema import test_images

if TYPE_CHECKING:
    import pandas

Places = Place | Iterable[Place]
_WHICH = ("method", "memory_budget", "seed")
"""Keys of results.json that distinguish the runs of a table."""


@overload
def load_runs(paths: Places, *, as_pandas: Literal[False] = False) -> list[dict[str, Any]]: ...


@overload
def load_runs(paths: Places, *, as_pandas: Literal[True]) -> pandas.DataFrame: ...


def load_runs(paths: Places, *, as_pandas: bool = False) -> list[dict[str, Any]] | pandas.DataFrame:
    """Return one dictionary per finished run, sorted by path: ``path``, all keys of results.json (``last``,
    ``accuracy_after_stage``, ``matrix``, ``per_class``, ...), and dotted keys of the config (``memory.budget``,
    ``train.lr``, ``method.margin``, ...).

    Args:
        paths: run directories, folders of run directories (a sweep's ``out``), or patterns such as ``"runs/*"``.
            Anything but finished runs is left out, and named in the log.
        as_pandas: return a pandas DataFrame, one row per run; lists stay lists in their cells.

    Raises:
        UserError: a results.json or config.toml cannot be read, or pandas is not installed for ``as_pandas``.
    """
    rows = [
        {"path": str(run.path)}
        | run.results
        | {key: value for key, value in run.config.items() if "." in key or key not in run.results}
        for run in _runs(paths)
    ]
    return _frame(rows) if as_pandas else rows


def load_per_class(paths: Places) -> pandas.DataFrame:
    """Return the accuracy of each class in each run: ``path``, ``method``, ``memory_budget``, ``seed``, then ``class``,
    ``task`` from 0, ``n`` test images, ``zero_shot``, ``after_learning`` and ``last`` (fractions).

    Raises:
        UserError: as ``load_runs``; or there is no run.
    """
    return _frame(_which(run) | row for run in _some(paths) for row in run.results.get("per_class", ()))


def load_predictions(paths: Places) -> pandas.DataFrame:
    """Return the answer to each test image after the last task of each run: ``path``, ``method``, ``memory_budget``,
    ``seed``, then ``id`` of the image (the same in all runs), ``class``, ``predicted``, ``right``, and, where they
    were recorded, ``margin`` (score of the best class minus that of the second) and ``confidence`` (probability of
    the best, 0..1).

    Raises:
        UserError: as ``load_runs``; or there is no run, or one has no predictions.npz or class_labels.
    """
    import_pandas()
    rows: list[dict[str, Any]] = []
    for run in _some(paths):
        names, columns = _named(run)
        first = columns["top"][:, 0]
        told = {
            "id": columns["id"].tolist(),
            "class": [names.get(label) for label in columns["label"].tolist()],
            "predicted": [names.get(label) for label in first.tolist()],
            "right": (first == columns["label"]).tolist(),
        }
        told |= {name: columns[name].tolist() for name in ("margin", "confidence") if name in columns}
        which = _which(run)
        rows += [which | dict(zip(told, row, strict=True)) for row in zip(*told.values(), strict=True)]
    return _frame(rows)


def load_confusion(run: Place) -> pandas.DataFrame:
    """Return how many test images of each class (rows) were classified as each class (columns) after the last task of
    a run; classes in the order learned.

    Raises:
        UserError: there is no run or more than one, or it has no predictions.npz or class_labels.
    """
    pandas = import_pandas()
    found = _some(run)
    if len(found) > 1:
        raise UserError(f"{os.fspath(run)} has {len(found)} runs: give one run directory")
    names, columns = _named(found[0])
    counts = pandas.crosstab(columns["label"], columns["top"][:, 0])
    order = list(names)
    counts = counts.reindex(index=order, columns=order, fill_value=0)
    counts.index, counts.columns = (
        pandas.Index([*names.values()], name=name) for name in ("class", "predicted")
    )
    return counts


def import_pandas() -> Any:
    """Return the package pandas. Raises UserError where it is not installed."""
    with needing("a data frame", "pandas"):
        import pandas
    return pandas


def _frame(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    return import_pandas().DataFrame([*rows])


def _runs(paths: Places) -> list[Finished]:
    return find_runs([paths] if isinstance(paths, str | os.PathLike) else paths)


def _some(paths: Places) -> list[Finished]:
    found = _runs(paths)
    if not found:
        raise UserError("no finished run there: give run directories, such as runs/*")
    return found


def _which(run: Finished) -> dict[str, Any]:
    return {"path": str(run.path)} | {key: run.results.get(key) for key in _WHICH}


def _named(run: Finished) -> tuple[dict[int, str], dict[str, Any]]:
    """Return class names by label in the order learned, and the columns of predictions.npz."""
    columns = answers(run.path, test_images(run.results))
    labels, classes = (run.results.get(key) or [] for key in ("class_labels", "classes"))
    if columns is None or not labels or len(labels) != len(classes):
        lacks = "predictions.npz" if columns is None else "class_labels in its results.json"
        raise UserError(f"{run.path} has no {lacks}: leave it out, or train it again")
    return dict(zip(labels, classes, strict=True)), columns
