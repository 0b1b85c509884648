"""Store embeddings in a folder that grows shard by shard, and read them memory-mapped.

table.json      what they are of: see ``Table``
000000.npy      embeddings [n, width], float32 or float16, unit length: numpy.load(..., mmap_mode="r") maps them
000000.json     "ids": a path or a text for each row; "skipped": id -> reason, of what could not be read; "sources":
                what was given to the command that wrote it
000001.npy ...
manifest.json   bytes and SHA-256 of each of these files (checkpoint.py)

A shard exists once the manifest lists it; one with nothing but skipped pictures has no .npy. Whatever else a killed
process leaves is written anew by the next.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from everclip.errors import UserError, why
from everclip.system import checkpoint, kinds
from everclip.system.outputs import check_new, named
from everclip.system.reading import JSON_BYTES, MOST_PARTS, parse_json, read_bytes, read_json, readable
from everclip.system.text import check

FORMAT = 1
TABLE = "table.json"
IMAGE, TEXT = "image", "text"
MOST_WIDTH, MOST_ROWS = 1 << 16, 10**6
"""Largest length of an embedding, and largest number of rows of a shard."""
_AGAIN = "use another copy, or embed into a new folder"

_TABLE = kinds.table(
    {
        "format": lambda value: value == FORMAT,
        "kind": lambda value: value in (IMAGE, TEXT),
        "model": kinds.text,
        "image_size": kinds.or_null(kinds.whole(1 << 20)),
        "fingerprint": kinds.text,
        "width": kinds.whole(MOST_WIDTH),
        "dtype": lambda value: value in ("float32", "float16"),
    }
)
_ROWS = kinds.table(
    {
        "ids": kinds.listed(kinds.text, MOST_ROWS),
        "skipped": kinds.mapped(kinds.text, MOST_ROWS),
        "sources": kinds.listed(kinds.text, MOST_ROWS),
    }
)


@dataclass(frozen=True)
class Table:
    """What the embeddings of a folder are of.

    Args:
        kind: ``image`` or ``text``.
        model: the spec that it was opened by; image_size: side in pixels, where it was given.
        fingerprint: of the encoder (encoder.py).
        width: length of an embedding.
        dtype: ``float32`` or ``float16``.
    """

    kind: Literal["image", "text"]
    model: str
    image_size: int | None
    fingerprint: str
    width: int
    dtype: Literal["float32", "float16"]


@dataclass(frozen=True)
class Shard:
    """A shard.

    Args:
        first: number of embeddings in the shards before it.
        digest: SHA-256 of its JSON, as the manifest had it.
    """

    name: str
    first: int
    rows: int
    digest: str


@dataclass(frozen=True)
class Listed:
    """What the rows of a shard are.

    Args:
        ids: of each row: the path of a picture, or a text.
        skipped: id -> reason, of what could not be read.
        sources: what was given to the command that wrote them.
    """

    ids: Sequence[str]
    skipped: Mapping[str, str]
    sources: Sequence[str]


@dataclass(frozen=True, eq=False)
class Vectors:
    """The embeddings in a folder, none of them in memory.

    Once ``blocks`` are mapped they stay what they are, whatever becomes of the folder; the ids of a shard are read, and
    kept in memory, when one of them is asked for first.
    """

    path: Path
    table: Table
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return self.shards[-1].first + self.shards[-1].rows if self.shards else 0

    @cached_property
    def blocks(self) -> list[tuple[int, Float[np.ndarray, "n d"]]]:
        """The shards with embeddings, each mapped from the disk, with the number of embeddings before it.

        Raises:
            UserError: a shard is missing or broken.
        """
        return [
            (shard.first, _mapped(self.path / f"{shard.name}.npy", self.table, shard.rows))
            for shard in self.shards
            if shard.rows
        ]

    def listed(self, shard: Shard) -> Listed:
        """Return what the rows of a shard are. Raises UserError where that is missing, broken or of another folder."""
        file = self.path / f"{shard.name}.json"
        with readable(file, _AGAIN, "is broken"):
            content = read_bytes(file, JSON_BYTES)
            found = parse_json(content)
        intact = hashlib.sha256(content).hexdigest() == shard.digest
        if not intact or not _ROWS(found) or len(found["ids"]) != shard.rows:
            what = "is not what was written, or was replaced since"
            raise UserError(f"{file} {what}: open the folder again, or {_AGAIN}")
        return Listed(found["ids"], found["skipped"], found["sources"])

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of some embeddings, numbered over all shards. Raises UserError as ``listed``."""
        names = []
        for row in rows:
            shard = self.shards[int(np.searchsorted(self._ends, row, side="right"))]
            if shard.name not in self._ids:
                self._ids[shard.name] = self.listed(shard).ids
            names.append(self._ids[shard.name][row - shard.first])
        return names

    @cached_property
    def _ids(self) -> dict[str, Sequence[str]]:
        return {}

    @cached_property
    def _ends(self) -> list[int]:
        return [shard.first + shard.rows for shard in self.shards]


def writable(out: str) -> Path:
    """Return the path of a folder of embeddings, new, empty or begun. Raises UserError for any other."""
    path = named(Path(out).expanduser())
    return path if is_vectors(path) else check_new(out)


def create(path: Path, table: Table) -> Vectors:
    """Return a folder without embeddings. Call it with ``path`` claimed. Raises as ``checkpoint.commit`` does."""
    content = json.dumps({"format": FORMAT, **asdict(table)}, ensure_ascii=False, indent=1) + "\n"
    checkpoint.commit(path, lambda where: (where / TABLE).write_bytes(content.encode()))
    return Vectors(path, table, ())


def append(vectors: Vectors, rows: Float[np.ndarray, "n d"], listed: Listed) -> Vectors:
    """Return the folder with one shard more, at once or not at all. Call it with the folder claimed.

    Args:
        rows: unit length.

    Raises:
        UserError: the list of the rows is larger than a shard's JSON may be.
        OSError: the disk is full or fails; what was there before stays.
    """
    name, contents = f"{len(vectors.shards):06d}", dict[str, bytes]()
    told = json.dumps(vars(listed), ensure_ascii=False, indent=0).encode()
    if len(told) > JSON_BYTES or told.count(b"[") + told.count(b"{") > MOST_PARTS:  # as its reader counts
        raise UserError(
            f"the {len(listed.ids):,} ids of a shard of {vectors.path} take more than {JSON_BYTES >> 20} MiB, or have"
            " more than a million brackets: give shorter texts, or fewer of them at a time"
        )
    if len(rows):
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(rows, dtype=vectors.table.dtype), allow_pickle=False)
        contents[f"{name}.npy"] = content.getvalue()
    contents[f"{name}.json"] = told
    checkpoint.amend(vectors.path, contents)
    shard = Shard(name, len(vectors), len(rows), hashlib.sha256(told).hexdigest())
    return Vectors(vectors.path, vectors.table, (*vectors.shards, shard))


def is_vectors(path: Path) -> bool:
    """Return whether a folder says that it holds embeddings."""
    return (path / TABLE).is_file()


def read(path: Path, whole: bool = False) -> Vectors:
    """Return the embeddings in a folder.

    Args:
        whole: compare every byte with the manifest, not only the sizes of the files.

    Raises:
        UserError: it holds no embeddings, or a file of it is missing or is not what was written.
    """
    if not is_vectors(path):
        what = f"has no {TABLE}" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: write it with everclip embed MODEL DATA -o {path}")
    with checkpoint.checked(path, _AGAIN):
        entries = checkpoint.entries(path)
        if whole:
            checkpoint.verify(path)
        table = read_json(path / TABLE)
    check(table, path / TABLE)
    if not _TABLE(table) or not table["width"]:
        raise UserError(f"{path / TABLE} is damaged, or has another format than {FORMAT}: {_AGAIN}")
    for file, size in ((path / name, entry["bytes"]) for name, entry in entries.items()):
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(
                f"{file} is missing, or does not have the {size:,} bytes that were written: {_AGAIN}"
            )
    found = Table(**{key: table[key] for key in Table.__dataclass_fields__})
    return Vectors(path, found, tuple(_shards(path, found, entries)))


def _shards(path: Path, table: Table, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Shard]:
    """Yield the shards in order. Raises UserError where one is missing between them."""
    listed = sorted(name[:-5] for name in entries if name[:-5].isdecimal() and name.endswith(".json"))
    names = [f"{number:06d}" for number in range(len(listed))]
    if listed != names:
        raise UserError(f"{path} is damaged (its shards are not numbered from 0 on): {_AGAIN}")
    first = 0
    for name in names:
        rows = len(_mapped(path / f"{name}.npy", table)) if f"{name}.npy" in entries else 0
        yield Shard(name, first, rows, str(entries[f"{name}.json"].get("sha256")))
        first += rows


def _mapped(file: Path, table: Table, rows: int | None = None) -> Float[np.ndarray, "n d"]:
    """Return a shard, mapped from the disk. Raises UserError where it is not an array, or not of the table's form."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's reader of headers raises anything, from TokenError to MemoryError
        raise UserError(f"{file} is broken ({why(error)}): {_AGAIN}") from error
    plain = isinstance(found, np.memmap) and found.flags.c_contiguous and found.dtype == np.dtype(table.dtype)
    fits = plain and found.shape[1:] == (table.width,) and len(found) <= MOST_ROWS
    if not fits or rows not in (None, len(found)):
        form = f"{table.dtype} [{rows or 'n'}, {table.width}]"
        raise UserError(f"{file} is broken (it holds no {form}): {_AGAIN}")
    return found
