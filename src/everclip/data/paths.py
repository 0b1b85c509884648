"""Guess the source that reads a plain path, so that ``photos`` stands for ``imagefolder:photos``."""

from __future__ import annotations

import os
from pathlib import Path

from everclip import plugins
from everclip.data.formats.folders import image_files, parts, subfolders
from everclip.errors import UserError

_FILES = {".csv": "csv", ".tsv": "csv", ".npz": "features"}
"""Endings of files that a source reads."""


def spec_of(text: str) -> str:
    """Return ``SOURCE:PATH`` for an existing folder or file given alone; any other text as it is.

    A folder that ``are_domains`` calls one of domains is a ``domainfolder``, any other an ``imagefolder``. A file is
    known by its ending. The name of a shipped source always means that source.
    """
    if text.partition(":")[0] in plugins.names("data/sources"):
        return text
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return f"{'domainfolder' if _holds_domains(Path(path)) else 'imagefolder'}:{text}"
    return f"{_kind(text)}:{text}" if is_readable(text) and os.path.isfile(path) else text


def is_readable(name: str) -> bool:
    """Return whether the ending of a file's name is one that a source reads."""
    return _kind(name) is not None


def _kind(name: str) -> str | None:
    return _FILES.get(os.path.splitext(name)[1].lower())


def _holds_domains(root: Path) -> bool:
    try:
        train, _ = parts(root)
        return are_domains(root / train)
    except UserError:  # the source that reads it says what is wrong
        return False


def are_domains(folder: Path) -> bool:
    """Return whether a folder looks like DOMAIN/CLASS/*.jpg: two or more folders without pictures of their own, all of
    which hold two or more folders of the same names. Raises UserError where one cannot be read."""
    outer = subfolders(folder)
    if len(outer) < 2 or any(image_files(folder, name, deep=False) for name in outer):
        return False
    return len(set.intersection(*(set(subfolders(folder / name)) for name in outer))) > 1
