"""Read features that were computed elsewhere, from an .npz file: its arrays are checked, and no object is unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray

from everclip.data.formats.folders import check_names
from everclip.data.gathered import Encoded
from everclip.data.images import Store, file_stamp
from everclip.data.prompts import clean
from everclip.errors import UserError, shown, why
from everclip.system.arrays import MOST_ROWS, Shape, read_arrays
from everclip.system.reading import readable

MOST_WIDTH = 1 << 16
"""Numbers per row."""
MOST_FILE = 1 << 40
FORM = "use np.savez(FILE, features=floats [n, d], labels=whole numbers or texts [n]), as docs/data.md says"

_ROWS, _TEXTS = Shape("f", (MOST_ROWS, MOST_WIDTH)), Shape("iuU", (MOST_ROWS,))
_NEEDED = {"features": _ROWS, "labels": _TEXTS}
_MORE = {
    "test_features": _ROWS,
    "test_labels": _TEXTS,
    "domains": _TEXTS,
    "test_domains": _TEXTS,
    "classnames": Shape("U", (MOST_ROWS,)),
    "text_features": _ROWS,
}


class FeatureStore(Store):
    """Rows of features in main memory: those of the training part, then those of the test part."""

    def __init__(self, rows: Float32[np.ndarray, "n d"], train: int) -> None:
        self.width = rows.shape[1]
        self.keys = [f"train/{row}" for row in range(train)]
        self.keys += [f"test/{row}" for row in range(len(rows) - train)]
        self.rows = rows

    def read(self, row: int) -> bytes:
        return self.rows[row].astype("<f4").tobytes()

    def nbytes(self, row: int) -> int:
        return 4 * self.rows.shape[1]

    def alone(self, row: int) -> tuple[Store, int]:
        return Encoded([self.keys[row]], [self.read(row)], self.width), 0


@dataclass(frozen=True, eq=False)
class Features:
    """The content of a file.

    Args:
        store: the rows of both parts.
        is_test: of each row; None where the file has no test part.
        labels: the class of each row, by name.
        domains: of each row, by name; None where there are none.
        names: the classes in the file's order; empty where it says none.
        text: float32 ``[c, d]``, the embedding of each of ``names``; None where there are none.
    """

    store: FeatureStore
    is_test: Sequence[bool] | None
    labels: Sequence[str]
    domains: Sequence[str] | None
    names: Sequence[str]
    text: Float32[np.ndarray, "c d"] | None


def read(file: Path) -> Features:
    """Return the features in a file, read once though a run asks twice. Raises UserError that names the wrong array."""
    try:
        file = file.expanduser()
        stamp = file_stamp(file)
    except (OSError, ValueError, RuntimeError) as error:  # the last for the home folder of an unknown user
        raise UserError(f"{file} cannot be read ({why(error)}): give an .npz file of features") from error
    return _read(file, stamp)


@lru_cache(maxsize=1)
def _read(file: Path, stamp: tuple[int, int]) -> Features:
    with readable(file, FORM, "holds no features that can be read"):
        found = read_arrays(file, _NEEDED, _MORE, MOST_FILE)
    for name in ("features", "test_features", "text_features"):
        if name in found:
            found[name] = _rows(file, name, found[name])
    _check(file, found)
    train, names = len(found["features"]), _names(file, found)
    tested = "test_features" in found
    rows = np.concatenate([found["features"], found["test_features"]]) if tested else found["features"]
    return Features(
        FeatureStore(rows, train),
        [row >= train for row in range(len(rows))] if tested else None,
        [text for name in ("labels", "test_labels") for text in _labels(file, name, found, names)],
        [text for name in ("domains", "test_domains") for text in _texts(file, name, found)] or None,
        names,
        found.get("text_features"),
    )


def in_float32(rows: NDArray[Any]) -> tuple[Float32[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """Return rows in float32, and which of them are finite there."""
    with np.errstate(over="ignore"):
        rows = rows.astype("<f4")
    return rows, np.logical_and.reduce(np.isfinite(rows), axis=1)


def _rows(file: Path, name: str, rows: NDArray[Any]) -> Float32[np.ndarray, "n d"]:
    """Return rows in float32. Raises UserError where there is none, or one is not finite."""
    if 0 in rows.shape:
        raise UserError(f"{file}: {name} has the shape {list(rows.shape)}: give at least one row and column")
    rows, good = in_float32(rows)
    if not good.all():
        raise UserError(f"{file}: row {int(good.argmin())} of {name} is not finite in float32: leave it out")
    return rows


def _check(file: Path, found: Mapping[str, NDArray[Any]]) -> None:
    """Raise UserError for arrays that do not go together."""
    columns = ["labels", *(["domains"] if {"domains", "test_domains"} & found.keys() else [])]
    for part in ("", "test_") if any(name.startswith("test_") for name in found) else ("",):
        features = f"{part}features"
        for name in (features, *(part + column for column in columns)):
            if name not in found:
                raise UserError(f"{file} has no {name}, which its other arrays need: add it")
            count, rows = len(found[name]), len(found[features])
            if count != rows:
                raise UserError(
                    f"{file}: {name} has {count} entries for {rows} rows of {features}: use as many"
                )
    width = found["features"].shape[1]
    for name in ("test_features", "text_features"):
        own = found[name].shape[1] if name in found else width
        if own != width:
            raise UserError(f"{file}: {name} has {own} columns and features {width}: use as many in both")


def _names(file: Path, found: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the names of the classes in the file's order. Raises UserError where text_features has more or fewer."""
    text, names = found.get("text_features"), _texts(file, "classnames", found)
    if text is None:
        return names
    if not names and found["labels"].dtype.kind != "U":
        names = [str(label) for label in range(len(text))]
    check_names([clean(name) for name in names], str(file), names, listed=False)
    if len(names) != len(text):
        raise UserError(f"{file}: {len(text)} rows of text_features for {len(names)} classnames: use as many")
    return names


def _texts(file: Path, name: str, found: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the entries of an array as texts; none where it is not there. Raises UserError for what is not text."""
    try:
        return [str(value) for value in found[name].tolist()] if name in found else []
    except (ValueError, SystemError) as error:  # of a number that stands for no character
        raise UserError(f"{file}: {name} holds what is not text ({error}): use names") from error


def _labels(file: Path, name: str, found: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Sequence[str]:
    """Return the class of each row by name. Raises UserError for one that is none of ``names``, if these are given."""
    labels = _texts(file, name, found)
    if name in found and found[name].dtype.kind != "U":
        wrong = [label for label in found[name].tolist() if not 0 <= label < (len(names) or label + 1)]
        if wrong:
            most = f"0 to {len(names) - 1}, as there are {len(names)} classes" if names else "0 on"
            raise UserError(f"{file}: {name} has the label {wrong[0]}: use whole numbers from {most}")
        return [names[int(label)] for label in labels] if names else labels
    unknown = set(labels).difference(names) if names else ()
    if unknown:
        raise UserError(f"{file}: {name} has {shown(min(unknown))}, which is none of classnames: add it")
    return labels
