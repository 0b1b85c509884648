"""Read columns of an untrusted .npz file, checking its claims before anything is unpacked.

A megabyte of packed zeros may claim to be gigabytes, or an array of objects. Imports no torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from everclip.system.reading import MIB, Unreadable, open_regular

MOST_ROWS = 4_000_000
MOST_COLUMNS = 100
_MOST_MEMBERS = 100
_SWELLS = 100
"""How many times larger than the file an array may be, beyond a MiB. Measured numbers hardly compress; even the
predictions of a run that always gives the same five answers are only 25 times larger, as the ids of its images
differ."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The ways in which numpy compresses; others can expand far more."""
_MOST_TEXT = 1000
"""Largest number of characters of a text."""


class Shape(NamedTuple):
    """The form that an array must have.

    Args:
        kinds: numpy's letters for its numbers ("iu", "f"), or "U" for texts.
        most: its largest shape.
        widest: most bytes of a number.
    """

    kinds: str
    most: tuple[int, ...]
    widest: int = 8


def read_columns(
    path: Path, needed: Mapping[str, Shape], more: Mapping[str, Shape], most: int
) -> dict[str, NDArray[Any]]:
    """Return arrays of equally many rows from a file that ``np.savez`` wrote.

    Args:
        needed, more: as for ``read_arrays``.
        most: largest number of rows.

    Raises:
        Unreadable: it is no such file, or has something else in it.
    """
    found = read_arrays(path, needed, more, MIB + 200 * most)
    rows = len(next(iter(found.values())))
    for name, column in found.items():
        if len(column) != rows:
            raise Unreadable(f"its arrays differ in length: {name}")
        if 0 in column.shape[1:]:
            raise Unreadable(f"{name} has the shape {column.shape}")
    return found


def read_arrays(
    path: Path,
    needed: Mapping[str, Shape],
    more: Mapping[str, Shape],
    most: int,
) -> dict[str, NDArray[Any]]:
    """Return arrays from a file of bounded size that ``np.savez`` wrote.

    Args:
        needed, more: name -> form of each array to read; those of ``more`` may be missing.

    Raises:
        Unreadable: it is no such file, or has something else in it.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with open_regular(path, most) as file, zipfile.ZipFile(file) as archive:
            if len(archive.infolist()) > _MOST_MEMBERS:
                raise Unreadable(f"more than {_MOST_MEMBERS} arrays")
            for name, shape in {**needed, **more}.items():
                if name in needed or f"{name}.npy" in archive.namelist():
                    entry, whole = archive.getinfo(f"{name}.npy"), path.stat().st_size
                    if entry.file_size > MIB + _SWELLS * whole:
                        raise Unreadable(
                            f"{name} unpacks to {entry.file_size:,} bytes, of a file of {whole:,}"
                        )
                    if entry.compress_type not in _METHODS:
                        raise Unreadable(f"{name} is packed in a way that numpy does not use")
                    with archive.open(f"{name}.npy") as member:
                        found[name] = _array(member, name, shape)
    except Unreadable:
        raise
    except KeyError as error:
        raise Unreadable(str(error.args[0])) from error
    except Exception as error:  # zipfile and numpy's reader of headers raise anything, such as TokenError
        raise Unreadable(f"no .npz file: {' '.join(str(error).split())[:100]}") from error
    return found


def _array(member: IO[bytes], name: str, form: Shape) -> NDArray[Any]:
    version = npy.read_magic(member)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = header(member)
    widest = 4 * _MOST_TEXT if dtype.kind == "U" else form.widest
    if dtype.kind not in form.kinds or dtype.itemsize > widest or len(shape) != len(form.most):
        raise Unreadable(f"{name} is of another kind: {dtype} {shape}")
    if any(not 0 <= length <= most for length, most in zip(shape, form.most, strict=True)):
        raise Unreadable(f"{name} has the shape {shape}, but at most {form.most} was expected")
    content = member.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    if member.read(1):  # at its end the checksum is compared
        raise Unreadable(f"{name} holds more than it claims")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
