"""Images with captions that tests write themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from everclip import data
from tests.data.lists import Row, listed, photos


def rows(root: Path, count: int = 6, classes: int = 4) -> list[Row]:
    """Pictures in ``root/photos``, and (path, caption, task) of each; the task is the colour."""
    return [(path, f"a {name} wall, number {path[-5]}", name) for path, name in photos(root, count, classes)]


def pairs(root: Path, count: int = 6, classes: int = 4) -> Path:
    """The same as a list."""
    return listed(root / "pairs.csv", "path,caption,task", rows(root, count, classes))


def load(spec: object) -> data.Dataset:
    """A data set that may have captions."""
    return data.load(str(spec), pairs=True)


def said(found: data.Dataset) -> dict[str, list[str]]:
    """Captions of each image, training and test, by its path."""
    captions, texts = found.train.captions, dict[str, list[str]]()
    assert captions is not None
    for part in (found.train, found.test):
        for row in map(int, part.rows):
            texts[part.store.keys[row]] = captions.gallery(np.array([row])).texts
    return texts
