"""Classify pictures without labels, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from everclip.data.formats.folders import check_names, image_files
from everclip.data.images import FileStore, Store
from everclip.data.pixels import Pixels
from everclip.data.prompts import read_lines
from everclip.errors import UserError
from everclip.inference.model import Deployed
from everclip.metrics.calibration import probabilities

BATCH = 64
"""Number of pictures decoded and encoded at a time."""


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer for one picture.

    Args:
        key: its path.
        probabilities: ``[c]``, of the model's classes; None for a picture that cannot be read.
        error: why it cannot.
    """

    key: str
    probabilities: Float[np.ndarray, " c"] | None
    error: str = ""


def answers(model: Deployed, batches: Iterable[Store]) -> Iterator[Answer]:
    """Yield an answer to each picture, in the order given; the next batch is decoded while one is encoded."""
    workers = min(8, os.cpu_count() or 1)

    def decode(store: Store) -> tuple[Store, Pixels, tuple]:
        pixels = Pixels(store, model.clip.eval_transform, model.clip.image_size, 0, workers)
        return store, pixels, pixels.load(np.arange(len(store.keys), dtype=np.int64))

    with ThreadPoolExecutor(1) as ahead:
        coming = (ahead.submit(decode, store) for store in batches)
        waiting = next(coming, None)
        while waiting is not None:
            store, pixels, (images, good) = waiting.result()
            waiting = next(coming, None)
            found = iter(probabilities(model.logits(images)) if good.any() else ())
            for row, (key, fine) in enumerate(zip(store.keys, good.tolist(), strict=True)):
                yield Answer(key, next(found)) if fine else Answer(key, None, pixels.broken[row])


def as_dict(model: Deployed, answer: Answer, top: int, reject_below: float) -> dict[str, Any]:
    """Return an answer for JSON: file, class, probability, top, error; null where there is none.

    Args:
        top: number of classes, the most probable first, from 1.
        reject_below: probability, 0..1, below which the most probable class is no answer.
    """
    if answer.probabilities is None:
        return {"file": answer.key, "class": None, "probability": None, "top": [], "error": answer.error}
    order = (-answer.probabilities).argsort(kind="stable")[:top].tolist()
    ranked = [
        {"class": model.names[c], "probability": round(float(answer.probabilities[c]), 6)} for c in order
    ]
    best = ranked[0]
    rejected = float(answer.probabilities[order[0]]) < reject_below
    return {
        "file": answer.key,
        "class": None if rejected else best["class"],
        "probability": best["probability"],
        "top": ranked,
        "error": None,
    }


def files(paths: Iterable[str], size: int = BATCH) -> Iterator[Store]:
    """Stores of at most ``size`` image files each; what ``paths`` yields is asked for as it is needed."""
    keys = iter(paths)
    while batch := list(islice(keys, size)):
        yield FileStore(Path(), batch)


def expanded(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths, each folder replaced by the images anywhere in it, sorted.

    Raises:
        UserError: a folder has none, or cannot be read.
    """
    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        found = image_files(Path(path), "")
        if not found:
            raise UserError(f"no images in {path}: give a folder with files such as .jpg or .png")
        yield from (os.path.join(path, name) for name in found)


def read_classes(path: str) -> list[str]:
    """Return class names, one per line. Raises UserError where the file cannot be read or names a class twice."""
    names = [line.strip() for line in read_lines(Path(path).expanduser(), "classes")]
    check_names(names, path)
    return names
