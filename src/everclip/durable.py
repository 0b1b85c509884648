"""Files that a reader, or a crash, finds as they were or as they are to be, and never between."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(part: Path, path: Path) -> None:
    """Move a finished file to its place in the same folder, on the disk as well; what was there is replaced."""
    sync(part)
    part.replace(path)
    sync(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole; what was there is replaced."""
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    put(part, path)
