"""Read untrusted files within bounds, or not at all.

A pipe, a device or a folder in place of a file is refused without waiting for it; so is a file that is too large, or
nested deeper than anything that everclip writes. Imports no torch.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from everclip.errors import UserError

MIB = 2**20
TEXT_BYTES = 64 * MIB
"""Largest size of a list of class names or templates, in bytes."""
JSON_BYTES, MOST_PARTS = 64 * MIB, 10**6
"""Largest size of a JSON file in bytes, and number of lists and objects in it: results of 100,000 classes fit."""
TOML_BYTES = 1_000_000
"""Largest size of a config, in bytes."""
DEPTH = 32
"""Largest nesting depth of lists and tables."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}
_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5})?|'
    r"'''(?:[^']|'(?!''))*(?:'{3,5})?|"
    r'"(?:[^"\\\n]|\\.)*"?|'
    r"'[^'\n]*'?|#[^\n]*|[.=,\n\[\]{}]",
    re.DOTALL,
)
"""Matches what may contain dots, and what ends a key. A text without an end, which the parser refuses, is one token:
trying each of its other quotes up to the end of the file would take time quadratic in its length."""


class Unreadable(ValueError):
    """A file cannot be read: why, in a few words."""


class TooDeep(Unreadable):
    """Its lists and tables are nested more than ``DEPTH`` deep."""

    def __init__(self) -> None:
        super().__init__("lists or tables nested too deeply")


@contextmanager
def readable(what: object, remedy: str, wrong: str = "cannot be read") -> Iterator[None]:
    """Raise UserError, with the reason and a remedy, where this block finds that ``what`` is Unreadable."""
    try:
        yield
    except Unreadable as error:
        raise UserError(f"{what} {wrong} ({error}): {remedy}") from error


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for it.

    Args:
        most: bytes that it may have.

    Raises:
        Unreadable: it is missing, may not be read, is larger, or is not a regular file.
    """
    try:
        _check(os.stat(path), most)  # merely opening a device may do something
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check(os.fstat(descriptor), most)
        except Unreadable:
            os.close(descriptor)
            raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except ValueError as error:  # a null character
        raise Unreadable(str(error)) from error
    return os.fdopen(descriptor, "rb")


def _check(found: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(f"it is {kind_of(found)}")
    if most is not None and found.st_size > most:
        raise Unreadable(f"larger than {_size(most)}")


def kind_of(found: os.stat_result) -> str:
    """Name the kind of what is not a regular file: a folder, a pipe, a device."""
    return _KINDS.get(stat.S_IFMT(found.st_mode), "no file")


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count} bytes"


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes. Raises Unreadable."""
    with open_regular(path, most) as file:
        try:
            content = file.read(os.fstat(file.fileno()).st_size + 1)
            # it is growing, or is one of those without a size
            while len(content) <= most and (more := file.read(MIB)):
                content += more
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
    if len(content) > most:
        raise Unreadable(f"larger than {_size(most)}")
    return content


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """Return the content of a file as UTF-8 text, with or without a byte order mark. Raises Unreadable."""
    content = read_bytes(path, most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Unreadable(f"line {line} is not UTF-8 text") from error


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file. Raises Unreadable."""
    return parse_json(read_bytes(path, most))


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text; numbers may be infinite, or NaN. Raises Unreadable."""
    with _parsing("JSON"):
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        _check_parts(text)
        return _shallow(json.loads(text))


def check_json(text: str) -> None:
    """Refuse a JSON text that ``read_json`` would not read. Raises Unreadable."""
    if len(text.encode()) > JSON_BYTES:
        raise Unreadable(f"larger than {_size(JSON_BYTES)}")
    _check_parts(text)


def _check_parts(text: str) -> None:
    if text.count("{") + text.count("[") > MOST_PARTS:
        raise Unreadable("more than a million lists and objects")


@contextmanager
def _parsing(kind: str) -> Iterator[None]:
    """Say in a few words why a text is not valid JSON or TOML. Raises Unreadable."""
    try:
        yield
    except RecursionError as error:
        raise TooDeep() from error
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"no valid {kind}: {' '.join(str(error).split())[:150]}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file, as ``parse_toml`` gives them. Raises Unreadable."""
    return parse_toml(read_text(path, TOML_BYTES))


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; whole numbers must fit in 64 bits, and dates become texts. Raises
    Unreadable."""
    dots = 0
    for token in _TOKEN.finditer(text):  # the parser's time is quadratic in a key's parts
        dots = dots + 1 if token[0] == "." else 0 if token[0] in "=,\n[]{}" else dots
        if dots >= DEPTH:
            raise TooDeep()
    with _parsing("TOML"):
        return _plain(_shallow(tomllib.loads(text)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # Python reads longer ones
        raise Unreadable("a whole number is too large: it must fit in 64 bits")
    return str(value) if isinstance(value, datetime.date | datetime.time) else value


def _shallow(value: Any) -> Any:
    """Return the value itself. Raises Unreadable where it is nested so deeply that recursive code would fail."""
    level: list[Any] = [value]
    for _ in range(DEPTH + 2):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return value
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    raise TooDeep()


def diverted(folder: Path, names: Iterable[str]) -> str:
    """Name what in a folder would divert or swallow what is written: a link, a pipe, a device; empty without any.

    Args:
        names: of files and folders that are written in place; others are replaced.
    """
    for name in names:
        try:
            found = os.lstat(folder / name)
        except OSError:
            continue
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return f"{name} is {kind_of(found)}"
    return ""


def strange(folder: Path, deep: bool = False) -> str:
    """Name what in a folder is neither a file nor a folder; empty where there is nothing of that kind.

    Libraries that are given the folder would wait for a pipe, and read a device forever. Links that lead nowhere do not
    count.

    Args:
        deep: look in the folders within it too; links to folders are not followed.
    """
    folders = [folder]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
            for entry in entries:
                if deep and entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_file() and not entry.is_dir() and os.path.exists(entry):
                    return f"{os.path.relpath(entry, folder)} is {kind_of(entry.stat())}"
        except OSError as error:
            return f"{error.filename} cannot be read ({error.strerror})"
    return ""
