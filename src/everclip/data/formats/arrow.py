"""Read images in Arrow columns, as Hugging Face data sets keep them: encoded bytes, or the path of a file."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everclip.data.formats.folders import Fence
from everclip.data.images import MOST_BYTES, Store, file_stamp
from everclip.errors import UserError, shown

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowStore(Store):
    """Images of several splits, each a column of ``struct<bytes, path>``, as the type Image of `datasets` is stored.
    Raises UserError for a path outside the folder and the caches, one that two rows share, and a missing file.

    A key is ``SPLIT/ROW``, or, where a row has no bytes, its path relative to ``folder``. A row with neither is a
    broken image.

    Args:
        name: of the data set, for messages.
        columns: split -> its images; the splits' rows follow each other.
        folder: of the data set; None where it comes from the hub.
        caches: other folders in which files may lie.
    """

    def __init__(
        self, name: str, columns: Mapping[str, pa.ChunkedArray], folder: Path | None, caches: list[str]
    ) -> None:
        self._columns = list(columns.values())
        self._starts = [0, *accumulate(len(column) for column in self._columns)]
        self._files: dict[int, str] = {}
        keys: list[str] = []
        fence = Fence(*([folder] if folder else []), *caches)
        first: dict[str, int] = {}

        def where(index: int) -> str:
            split = bisect_right(self._starts, index) - 1
            return f'row {index - self._starts[split]} of the split "{[*columns][split]}" of hf:{name}'

        for split, column in columns.items():
            for row, path in enumerate(_paths(column)):
                index, key = len(keys), f"{split}/{row}"
                if path is not None:
                    path = self._files[index] = _checked(where, index, path, folder, fence)
                    if first.setdefault(path, index) != index:
                        both = f"{where(first[path])} and {where(index)}"
                        raise UserError(f"{both} have the same file {shown(path, 1000)}: keep one of them")
                    if folder and Path(path).is_relative_to(folder.absolute()):
                        key = Path(path).relative_to(folder.absolute()).as_posix()
                keys.append(key)
        for index, path in self._files.items():
            if not os.path.isfile(path):
                raise UserError(
                    f"{where(index)} names the file {shown(path, 1000)}, which is missing: copy it there"
                )
        self.keys = keys
        self._sizes = np.concatenate([np.zeros(0, np.int64), *map(_sizes, self._columns)])

    def read(self, row: int) -> bytes:
        path = self._files.get(row)
        if path is not None:
            if not os.path.isfile(path) or os.path.getsize(path) > MOST_BYTES:
                raise OSError("no such file, or a very large one")
            return Path(path).read_bytes()
        data = self._cell(row)
        if data is None:
            raise OSError("no image in this row")
        return data

    def nbytes(self, row: int) -> int:
        try:
            path = self._files.get(row)
            return os.path.getsize(path) if path is not None else int(self._sizes[row])
        except OSError:
            return 0

    def stamp(self, row: int) -> tuple[int, int] | None:
        path = self._files.get(row)
        return None if path is None else file_stamp(path)

    def _cell(self, row: int) -> bytes | None:
        split = bisect_right(self._starts, row) - 1
        cell: Any = self._columns[split][row - self._starts[split]]
        return cell["bytes"].as_py() if cell.is_valid else None


def _paths(column: pa.ChunkedArray) -> list[str | None]:
    """Return the path of each image without bytes; None for the others."""
    import pyarrow.compute as pc

    functions: Any = pc  # generated when it is imported
    lacking = functions.is_null(functions.struct_field(column, "bytes"))
    return functions.if_else(lacking, functions.struct_field(column, "path"), None).to_pylist()


def _sizes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the number of bytes in each row, without reading the images."""
    import pyarrow.compute as pc

    functions: Any = pc
    lengths = functions.binary_length(functions.struct_field(column, "bytes"))
    return functions.fill_null(lengths, 0).to_numpy().astype(np.int64)


def _checked(where: Callable[[int], str], row: int, path: str, folder: Path | None, fence: Fence) -> str:
    """Return the absolute path of an image file. Raises UserError where it is a URL or lies outside."""
    if "://" in path or "\0" in path:
        raise UserError(f"{where(row)} names the file {shown(path)}: download and unpack it first")
    absolute = str(Path(folder or "").absolute() / path)
    if not fence.holds(absolute):
        raise UserError(
            f"{where(row)} names the file {shown(path)}, which lies outside of the data set: use save_to_disk"
        )
    return absolute
