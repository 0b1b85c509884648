"""Download files: resumed where interrupted, checked, and put in place only when complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock, Timeout

from everclip.errors import UserError
from everclip.system import cache_folder
from everclip.system.atomic import put
from everclip.system.outputs import open_own

CHUNK = 1 << 20
TRIES = 3
"""Tries in a row that bring nothing before a download is given up."""
PAUSE = 1.0
"""Seconds before the next try, doubled each time."""
SECONDS = 30.0
"""Seconds without a byte after which a connection is given up."""
REPORT = 10.0
"""Seconds between lines that say how far a download is."""
RESERVE = 64 << 20
"""Bytes that are left free on the disk."""


@dataclass(frozen=True)
class Remote:
    """A file on the web.

    Args:
        size: in bytes.
        digest: ``md5:HEX`` or ``sha256:HEX``.
    """

    url: str
    size: int
    digest: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


def home(source: str, argument: str | None) -> Path:
    """Return the folder of an official data set: the one given, else ``$EVERCLIP_DATA/SOURCE``, else one in the cache.
    Raises UserError where the one given is not a folder."""
    if argument:
        root = Path(argument).expanduser()
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise UserError(f"data folder {root} {what}: give that of {source}, or use data={source}")
        return root
    named = os.environ.get("EVERCLIP_DATA")
    return (Path(named).expanduser() if named else cache_folder.folder() / "data") / source


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare a folder, made if need be. Raises UserError where it cannot be written."""
    lock = FileLock(folder / ".everclip.lock")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that prepares {folder}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError where, while it is open, a file or folder cannot be written."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} cannot be written ({why}): make room or use another folder") from error


def check_room(folder: Path, size: int) -> None:
    """Raise UserError where a disk has less than ``size`` bytes to spare."""
    free = shutil.disk_usage(folder).free - RESERVE
    if free < size:
        raise UserError(
            f"{folder} has {max(0, free) / 1e9:.1f} GB of {size / 1e9:.1f} GB needed: make room on its disk"
        )


def matches(path: Path, digest: str) -> bool:
    """Return whether a file has this digest. Raises UserError where it cannot be read."""
    algorithm, _, expected = digest.partition(":")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == expected
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def fetch(remote: Remote, path: Path) -> None:
    """Download a file unless it is there, continuing where an earlier try stopped. Raises UserError where it fails."""
    if path.exists():
        return
    part = path.with_name(f".{path.name}.everclip-part")
    with writing(part):
        _unlink_link(part)
    have = _size(part)
    if have > remote.size:
        part.unlink()
        have = 0
    check_room(path.parent, remote.size - have)
    rest = f", of which {have / 1e6:.0f} are there" if have else ""
    say(f"downloading {remote.url} to {path} ({remote.size / 1e6:.0f} MB{rest})")
    _complete(remote, part, path)
    if not matches(part, remote.digest):
        part.unlink()
        raise UserError(
            f"{remote.url} has another checksum than the original: try again, or put the original in {path}"
        )
    commit(part, path)


def commit(part: Path, path: Path) -> None:
    """Move a finished file to its place, and make sure that it is on the disk."""
    with writing(path):
        put(part, path)


def _unlink_link(part: Path) -> None:
    """Remove anything but a regular file with one name: in other people's folders it may link to a user's file."""
    with suppress(FileNotFoundError):
        found = os.lstat(part)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            part.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _complete(remote: Remote, part: Path, path: Path) -> None:
    """Fetch the rest of ``part``, in as many connections as it takes."""
    failures, reason, most = 0, "the connection was closed", _size(part)
    while (have := _size(part)) < remote.size or not part.exists():
        try:
            _append(remote, part, path, have)
        except urllib.error.HTTPError as error:
            error.close()
            reason, failures = f"HTTP {error.code} {error.reason}", TRIES if error.code < 500 else failures
            if error.code == 416:  # there is no more to be had
                part.unlink(missing_ok=True)
                reason = "it is shorter than the original"
        except (urllib.error.URLError, HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = " ".join(str(cause).split()) or type(cause).__name__
        # More than ever before, as a server without ranges starts again each time.
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= TRIES:
            raise UserError(
                f"{remote.url} cannot be downloaded ({reason}): try again to go on, or put the file in {path}"
            )
        if failures:
            time.sleep(PAUSE * 2 ** (failures - 1))


def _append(remote: Remote, part: Path, path: Path, have: int) -> None:
    """Append what one connection brings. Raises UserError where it is too much or cannot be written."""
    headers = {"User-Agent": "everclip", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request, said = urllib.request.Request(remote.url, headers=headers), time.monotonic()
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        # A server that knows no ranges sends the whole file from its start.
        extent = answer.headers["Content-Range"] or ""
        goes_on = answer.status == 206 and extent.startswith(f"bytes {have}-")
        done = have if goes_on else 0
        total = extent.rpartition("/")[2] if goes_on else answer.headers["Content-Length"] or ""
        if total.isdecimal() and int(total) != remote.size:
            raise UserError(
                f"{remote.url} has {int(total)} bytes, not {remote.size}: put the original in {path}"
            )
        with writing(part):
            file = open_own(part, "ab" if goes_on else "wb")
        with file:
            while chunk := answer.read(CHUNK):
                done += len(chunk)
                if done > remote.size:
                    part.unlink()
                    wrong = f"sends more than {remote.size} bytes"
                    raise UserError(f"{remote.url} {wrong}: put the original in {path}")
                with writing(part):
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
                if time.monotonic() - said > REPORT:
                    said = time.monotonic()
                    say(f"  {done / 1e6:.0f} of {remote.size / 1e6:.0f} MB")
