"""Recognise learned images by their content, so that none counts as a fresh test image."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from everclip.data.images import ImageSet, content_id
from everclip.data.inventory import contents
from everclip.errors import UserError
from everclip.methods.shared.sums import Sums
from everclip.system.checkpoint import Store
from everclip.system.reading import read_json
from everclip.training.noted import read

log = logging.getLogger("everclip")

RECORD, LIST, SUMS = "update.json", "images.json", "sums.safetensors"
"""Files of a version: what was updated, its exemplars, its sums."""


@dataclass(frozen=True, eq=False)
class Learned:
    """Images that were learned.

    Args:
        ids: of their content: for a run as its data's store gives them, for a version the ``content_id`` of the files.
        sizes: bytes of each of a run's images; None where they are not known.
    """

    ids: NDArray[np.int64]
    sizes: NDArray[np.int64] | None

    def among(self, images: ImageSet) -> NDArray[np.bool_]:
        """Return which images are among them. Where sizes are known, only images of such a size are read."""
        store, found = images.store, np.zeros(len(images), dtype=bool)
        if self.sizes is None:
            maybe = np.arange(len(images))
            read_ids = contents(images.rows, lambda row: content_id(store.read(row)))
        else:
            sizes = np.array([store.nbytes(row) for row in images.rows.tolist()], dtype=np.int64)
            maybe = np.flatnonzero(np.isin(sizes, self.sizes))
            read_ids = contents(images.rows[maybe], store.content)
        found[maybe] = np.isin(read_ids, self.ids)
        return found


def is_version(folder: Path) -> bool:
    """Return whether ``folder`` is what an update writes."""
    return (folder / RECORD).is_file()


def check_version(spec: str | os.PathLike[str]) -> None:
    """Raise UserError where ``spec`` is not a folder that an update wrote."""
    if not is_version(Path(spec).expanduser()):
        raise UserError(f"{spec} is not a version: give a folder that everclip update wrote")


def of(spec: str) -> Learned | None:
    """Return what the run or version ``spec`` has learned; None where that is not known.

    Raises:
        UserError: its folder is damaged.
    """
    folder = Path(spec).expanduser()
    return _of_version(folder) if is_version(folder) else of_run(folder)


def of_run(folder: Path) -> Learned | None:
    """Return the training images of the tasks that the run in a folder has finished; None where it has noted none."""
    noted = read(folder)
    if noted is None:
        return None
    done = max((place.task for place in Store(folder / "checkpoints", 1).places() if place.whole), default=0)
    trained = noted.learned(done)
    return Learned(trained.contents, trained.sizes)


def _of_version(folder: Path) -> Learned:
    try:
        rows = read_json(folder / LIST)["rows"]
        kept = np.array([row[4] for row in rows], dtype=np.int64)
        return Learned(np.concatenate([Sums.load(folder / SUMS).ids.numpy(), kept]), None)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged ({LIST} or {SUMS}): use another copy") from error


def repeated(spec: str, images: ImageSet, name: str) -> int | None:
    """Return how many of the images the model ``spec`` has learned, and warn if any; None where that is not known.

    Args:
        name: of the data, for the warning.
    """
    known = of(spec)
    if known is None:
        return None
    count = int(known.among(images).sum())
    if count:
        words = "%d of the %d images of %s were learned by %s, which inflates its accuracy"
        log.warning(words, count, len(images), name, spec)
    return count
