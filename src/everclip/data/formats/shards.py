"""Read tar files of samples, in the layout that the WebDataset package defines: an index by header, reading by offset.

The files of a sample follow each other and share their name up to the first dot, the key: ``n01/7.jpg`` and
``n01/7.cls``. https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from everclip.data.captions import checked
from everclip.data.formats.pairs import of_json
from everclip.data.images import MOST_BYTES, Store, file_stamp
from everclip.errors import UserError, shown, why
from everclip.system.reading import Unreadable, open_regular, parse_json

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("cls", "json", "txt")
"""Where a label is looked for, in this order. Other members are never decoded."""
CAPTION = "its caption"
MOST_TEXT = 1 << 20
"""Bytes of a text member."""
_ENDLESS = (RecursionError, OverflowError, MemoryError)
"""What tarfile raises for headers that extend each other without end, or claim more bytes than there can be."""
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


@dataclass(eq=False)
class Shard:
    """The samples of one tar file, as columns: keys, classes as they are written or captions, where the images lie."""

    path: Path
    keys: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class TarStore(Store):
    """Images in uncompressed tar files, read by offset. Keys are ``SHARD/KEY``, with SHARD relative to ``root``."""

    def __init__(self, root: Path, shards: Sequence[Shard]) -> None:
        names = [shard.path.relative_to(root).as_posix() for shard in shards]
        self.keys = [f"{name}/{key}" for name, shard in zip(names, shards, strict=True) for key in shard.keys]
        self._paths = [shard.path for shard in shards]
        self._shards = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
        self._offsets = np.array([place for shard in shards for place in shard.offsets], dtype=np.int64)
        self._sizes = np.array([size for shard in shards for size in shard.sizes], dtype=np.int64)

    def read(self, row: int) -> bytes:
        size = self.nbytes(row)
        # Opened for each image: threads share no position, and any number of shards keeps no file open.
        with self._paths[self._shards[row]].open("rb") as file:
            file.seek(int(self._offsets[row]))
            data = file.read(size)
        if len(data) != size:
            raise OSError("the shard is shorter than it was")
        return data

    def nbytes(self, row: int) -> int:
        return int(self._sizes[row])

    def stamp(self, row: int) -> tuple[int, int]:
        _, stamp = file_stamp(self._paths[self._shards[row]])
        return self.nbytes(row), stamp


def read_shard(path: Path, captions: str | None = None) -> Shard:
    """Return the index of a tar file. Raises UserError where it is damaged, compressed, or holds more than whole
    samples.

    Args:
        captions: the members that have captions in place of labels, "txt" or "json".
    """
    shard = Shard(path)
    seen: set[str] = set()
    try:
        with open_regular(path) as file:
            for key, members in _samples(path, file):
                if key in seen:
                    raise UserError(
                        f"shard {path} holds the key {shown(key)} twice: keep the files of a sample together"
                    )
                seen.add(key)
                _add(shard, file, key, members, captions)
    except (OSError, Unreadable) as error:
        raise UserError(f"shard {path} cannot be read ({why(error)}): check the file") from error
    return shard


def same_images(one: Shard, other: Shard) -> bool:
    """Return whether two shards hold the same images, in the same order, under the same keys. Raises UserError where
    one cannot be read."""
    if (one.keys, one.sizes) != (other.keys, other.sizes):
        return False
    stores = [TarStore(shard.path.parent, [shard]) for shard in (one, other)]
    try:
        return all(stores[0].read(row) == stores[1].read(row) for row in range(len(one.keys)))
    except OSError as error:
        raise UserError(
            f"shards {one.path} and {other.path} cannot be compared ({why(error)}): check the files"
        ) from error


def _samples(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield (key, extension -> member) for each run of members with one key; only images and texts."""
    current, members = "", {}
    for member in _members(path, file):
        match = _NAME.fullmatch(member.name)
        if not match:
            continue
        key, extension = match[1], match[2].lower()
        if extension not in IMAGES + TEXTS:
            continue
        if not key.isascii() and any("\ud800" <= c <= "\udfff" for c in key):
            raise UserError(
                f"shard {path} holds {shown(_escaped(key))}, which is not a UTF-8 name: rename it"
            )
        if key != current and members:
            yield current, members
        if key != current:
            current, members = key, {}
        if extension in members:
            raise UserError(f"shard {path} holds the file {shown(member.name)} twice: keep one")
        members[extension] = member
    if members:
        yield current, members


def _escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar file. Raises UserError where it is damaged, ends early or holds anything but files."""
    length = os.fstat(file.fileno()).st_size
    damaged = f"shard {path} is truncated or damaged: copy it again"
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r")
    except _ENDLESS as error:
        raise UserError(damaged) from error
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"shard {path} is not a plain tar file ({error}): unpack or copy it again") from error
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, *_ENDLESS) as error:
            raise UserError(damaged) from error
        if member is None:
            break
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - it keeps them all
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            what = "a link" if member.issym() or member.islnk() else "no plain file"
            raise UserError(f"shard {path} holds {shown(_escaped(member.name))}, {what}: use files alone")
        if not 0 <= member.offset_data <= member.offset_data + member.size <= length:
            raise UserError(damaged)
        yield member
    # tarfile stops silently at a damaged header and at the end of the file; a whole archive ends with a block of zeros.
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise UserError(damaged)


def _add(
    shard: Shard, file: IO[bytes], key: str, members: dict[str, tarfile.TarInfo], captions: str | None
) -> None:
    """Append a sample. Raises UserError where it has no image, two, no label or caption, or one that is too large."""
    where = f"sample {shown(key)} of shard {shard.path}"
    images = [extension for extension in members if extension in IMAGES]
    if len(images) != 1:
        found = (
            f"{' and '.join(images[:2])}: keep one of them" if images else f"no image: add {'/'.join(IMAGES)}"
        )
        raise UserError(f"{where} has {found}")
    image = members[images[0]]
    if image.size > MOST_BYTES:
        raise UserError(f"{where} has an image of {image.size:,} bytes: use at most {MOST_BYTES:,}")
    shard.keys.append(key)
    if captions is None:
        shard.labels.append(_label(where, file, members))
    else:
        shard.captions.append(_captions(where, file, members, captions))
    shard.offsets.append(image.offset_data)
    shard.sizes.append(image.size)


def _label(where: str, file: IO[bytes], members: dict[str, tarfile.TarInfo]) -> str:
    """Return the class of a sample, as it is written in the first of its texts that has one."""
    for extension in TEXTS:
        if extension not in members:
            continue
        found = _content(where, file, members, extension, "a class's number or name")
        if extension == "json":
            found = found.get("label") if isinstance(found, dict) else None
        if found not in (None, ""):
            return _checked(where, extension, found)
    raise UserError(f'{where} has no label: add a .cls, a .txt or a .json with "label"')


def _captions(where: str, file: IO[bytes], members: dict[str, tarfile.TarInfo], extension: str) -> list[str]:
    """Return the captions of a sample: its .txt, or those in its .json. Raises UserError where it has none."""
    if extension not in members:
        raise UserError(f"{where} has no .{extension} with its caption: add one, or leave the sample out")
    found = _content(where, file, members, extension, CAPTION)
    return of_json(where, found) if extension == "json" else checked(where, [found])


def _content(
    where: str, file: IO[bytes], members: dict[str, tarfile.TarInfo], extension: str, what: str
) -> Any:
    """Return a member's text, or the value in its JSON. Raises UserError if it is not ``what`` it should be."""
    member, alone = members[extension], CAPTION if what == CAPTION else "the label"
    if member.size > MOST_TEXT:
        raise UserError(f"{where} has a .{extension} of {member.size:,} bytes: use {alone} alone")
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8-sig").strip()
        return parse_json(text) if extension == "json" else text
    except ValueError as error:
        kind = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise UserError(f"{where} has a .{extension} that is not {kind}: use {what}") from error


def _checked(where: str, extension: str, label: object) -> str:
    """Return a label as text, a number without leading zeros. Raises UserError for anything but a number or a name."""
    text = str(label).strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return str(int(text))
    is_name = type(label) in (int, str) and text and not re.fullmatch(r"-[0-9]+", text)
    if extension == "cls" or not is_name:
        raise UserError(
            f"{where} has the label {shown(label)} in .{extension}: use a number from 0, or a name in .txt or .json"
        )
    return text
