"""List what to embed, with ids: pictures, folders of them and data sources, or the lines of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from everclip import data, plugins
from everclip.data.formats.folders import ADDITION
from everclip.data.gathered import Gathered
from everclip.data.images import FileStore, ImageSet, Store
from everclip.data.prompts import read_lines
from everclip.errors import UserError
from everclip.inference.predict import expanded
from everclip.system import trust


def pictures(sources: Sequence[str], written: bool = True) -> tuple[ImageSet, list[str]]:
    """Return the pictures of some sources in order, and an id of each: its path, or SOURCE/KEY.

    Args:
        sources: files, folders (searched for images at any depth), and data sources such as ``imagefolder:photos``, all
            of whose images are taken.
        written: whether the user wrote them; sources that a file names run no code.

    Raises:
        UserError: one of them does not exist or has no pictures.
    """
    parts, ids = list[ImageSet](), list[str]()
    for spec in sources:
        images, names = _of_source(spec, written) if _is_source(spec) else _of_files(spec)
        parts.append(images)
        ids += names
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        first.setdefault(name, row)
    rows = np.fromiter(first.values(), dtype=np.int64, count=len(first))
    return _table(Gathered(parts), rows), list(first)


def texts(file: str) -> list[str]:
    """Return the lines of a file, each once. Raises UserError where it cannot be read, or is empty."""
    return list(dict.fromkeys(line.strip() for line in read_lines(Path(file).expanduser(), "texts")))


def _is_source(spec: str) -> bool:
    name = spec.partition(":")[0]
    known = name in plugins.names("data/sources") or trust.is_code(name)
    return known and not Path(spec).expanduser().exists()


def _of_files(spec: str) -> tuple[ImageSet, list[str]]:
    path = os.path.expanduser(spec)
    if not os.path.exists(path):
        raise UserError(f"{spec} does not exist: give pictures, folders or a source: imagefolder:PATH")
    names = list(expanded([path]))
    return _table(FileStore(Path(), names), np.arange(len(names), dtype=np.int64)), names


def _of_source(spec: str, written: bool) -> tuple[ImageSet, list[str]]:
    if written:
        trust.typed(spec)
    source, argument = data.source(spec, {})
    found = source.load(argument, ADDITION)
    store = found.train.store
    if store.width is not None:
        raise UserError(f"{spec} holds features, which are embeddings already: give pictures")
    parts = [part for part in (found.train, found.test) if len(part)]
    rows = np.sort(np.concatenate([part.rows for part in parts])) if parts else np.zeros(0, dtype=np.int64)
    if any(part.store is not store for part in parts):
        raise UserError(f"training and test images of {spec} lie in two places: give two sources")
    if not len(rows):
        raise UserError(f"{spec} has no pictures: give a folder with images")
    root = str(store.root) if isinstance(store, FileStore) else spec
    return _table(store, rows), [os.path.join(root, store.keys[row]) for row in rows.tolist()]


def _table(store: Store, rows: np.ndarray) -> ImageSet:
    """Return rows of a store without labels; the ids are their places."""
    none = np.zeros_like(rows)
    return ImageSet(store, rows, none, none, np.arange(len(rows), dtype=np.int64))
