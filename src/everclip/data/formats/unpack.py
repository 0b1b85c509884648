"""Unpack archives with suspicion: plain files under one folder, of bounded number and size, or nothing at all."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from everclip.data.formats.download import CHUNK, check_room, writing
from everclip.errors import UserError, why
from everclip.system.atomic import remove_unfinished, settle, stage

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
# RuntimeError (also as NotImplementedError) is what zipfile raises for passwords and unknown compressions.
_BROKEN = (*_DAMAGED, EOFError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Limits:
    """The most that an archive may hold."""

    files: int
    size: int


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; ``kind`` is "file", "folder", or "other" for links, devices and the like."""

    name: str
    size: int
    kind: str
    open: Callable[[], Any]


def unpack(
    archive: Path, inside: str, target: Path, limits: Limits, check: Callable[[Path], None] | None = None
) -> None:
    """Unpack the folder ``inside`` of an archive (.zip or .tar.gz) to the folder ``target``, which appears only when it
    is complete. Call it with the folder around ``target`` locked (``download.locked``). Raises UserError for a damaged
    archive, one larger than ``limits``, links or paths that lead out of it, or no room.

    Args:
        check: called with the unpacked folder before this takes its place; raises UserError.
    """
    with writing(target):
        remove_unfinished(target)
        with stage(target) as part:
            _extract(archive, inside, part, limits)
            if check is not None:
                check(part)
            os.sync()  # so that its files are on the disk before the folder has its name
            settle(part, target)


def _extract(archive: Path, inside: str, part: Path, limits: Limits) -> None:
    files, size = 0, 0
    with _readable(archive):
        for member in _members(archive):
            place = _place(member, inside)
            if place is None or member.kind == "folder":
                continue
            files, size = files + 1, size + member.size
            if files > limits.files or size > limits.size:
                raise ValueError("it holds more than the original does")
            check_room(part, member.size)
            _write(member, part / place)
        if not files:
            raise ValueError(f"it has no folder {inside}")


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Turn errors while an archive is unpacked into a one-line UserError."""
    try:
        yield
    except UserError:
        raise
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's own errors have no number
            raise
        raise UserError(
            f"{archive} cannot be unpacked ({why(error)}): remove it, and get the original"
        ) from error


def _members(archive: Path) -> Iterator[_Member]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                yield _Member(info.filename, info.file_size, _zip_kind(info), lambda i=info: packed.open(i))
        return
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for info in tar:
            kind = "folder" if info.isdir() else "file" if info.isreg() else "other"
            yield _Member(info.name, info.size, kind, lambda i=info: tar.extractfile(i))
        while stream.read(CHUNK):  # a tar ends before its stream does, where the checksum is
            pass


def _zip_kind(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made on Windows
    if info.is_dir():
        return "folder"
    return "file" if kind in (0, stat.S_IFREG) else "other"


def _place(member: _Member, inside: str) -> PurePosixPath | None:
    """Return the place of a member, relative to the folder ``inside``; None outside of it."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise ValueError(f"the path {member.name[:60]!a} leads out of it")
    if path.parts[:1] != (inside,):
        return None
    if member.kind == "other":
        raise ValueError(f"{member.name[:60]!a} is a link or no file")
    return path.relative_to(inside)


def _write(member: _Member, path: Path) -> None:
    """Write one file, of no more bytes than the archive says; two of one name are refused."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file, member.open() as packed:
            _copy(packed, file, member.size)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f"{member.name[:60]!a} is there twice, or is a folder and a file") from error


def _copy(packed: IO[bytes], file: IO[bytes], size: int) -> None:
    while chunk := packed.read(min(CHUNK, size + 1)):
        size -= len(chunk)
        if size < 0:
            raise ValueError("an entry is longer than it says")
        file.write(chunk)
    if size:
        raise ValueError("an entry is shorter than it says")
