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
from jaxtyping import Bool, Float

from everclip.data.formats.folders import check_names, image_files
from everclip.data.images import FileStore, ImageSet, Store
from everclip.data.pixels import Pixels
from everclip.data.prompts import read_lines
from everclip.errors import UserError, shown
from everclip.inference.assess import decoded
from everclip.inference.model import Deployed
from everclip.inference.unknown import judged, read_rate, threshold
from everclip.metrics.calibration import probabilities
from everclip.models.clip import Images

BATCH = 64
"""Number of pictures decoded and encoded at a time."""


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer for one picture.

    Args:
        key: its path.
        probabilities: ``[c]``, of the model's classes; None for a picture that cannot be read.
        error: why it cannot.
        score: its unknown score (inference/unknown.py), where that was asked for.
        unknown: whether this is above the threshold.
    """

    key: str
    probabilities: Float[np.ndarray, " c"] | None
    error: str = ""
    score: float | None = None
    unknown: bool = False


def answers(model: Deployed, batches: Iterable[Store], unknown_at: float | None = None) -> Iterator[Answer]:
    """Yield an answer to each picture, in the order given; the next batch is decoded while one is encoded.

    Args:
        unknown_at: rate, above 0 and below 1, at which pictures of known classes may be called unknown; None: no
            picture is.

    Raises:
        UserError: as ``unknown.threshold``, before the first answer; or the model gives no probabilities.
    """
    above = None if unknown_at is None else threshold(model, unknown_at)
    return _answers(model, batches, above)


def _answers(model: Deployed, batches: Iterable[Store], above: float | None) -> Iterator[Answer]:
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
            found = iter(zip(*asked(model, images, above), strict=True) if good.any() else ())
            for row, (key, fine) in enumerate(zip(store.keys, good.tolist(), strict=True)):
                if not fine:
                    yield Answer(key, None, pixels.broken[row])
                    continue
                shares, score, unknown = next(found)
                yield Answer(key, shares, "", score, unknown)


def asked(
    model: Deployed, images: Images, above: float | None = None
) -> tuple[Float[np.ndarray, "b c"], list[float] | list[None], list[bool]]:
    """Return probabilities of images as the model takes them, their unknown scores, and which of these are above a
    threshold (None and False without one). Raises UserError where probabilities are not numbers."""
    if above is None:
        return shares_of(model, model.logits(images)), [None] * len(images), [False] * len(images)
    logits, unknown = judged(model, model.judge, images)
    return shares_of(model, logits), unknown[:, 0].tolist(), (unknown[:, 0] > above).tolist()


def shares_of(model: Deployed, logits: Float[np.ndarray, "b c"]) -> Float[np.ndarray, "b c"]:
    """Return probabilities of a model's logits. Raises UserError where they are not numbers."""
    if np.isneginf(logits).all(1).any():
        raise UserError(
            f"{model.spec} has learned no image of any of the {len(model.names)} classes to choose from: add"
            " a class that it has learned"
        )
    found = probabilities(logits)
    if not np.isfinite(found).all():
        raise UserError(f"{model.spec} gives NaN instead of probabilities: use another copy")
    return found


def everyone(
    model: Deployed, images: ImageSet, unknown_at: float | str | None = None, unsaved: bool = False
) -> tuple[Float[np.ndarray, "n c"], Bool[np.ndarray, " n"]]:
    """Return probabilities of all images, and which are unknown.

    Args:
        unknown_at: as for ``answers``, or a text such as 5%.
        unsaved: as for ``unknown.threshold``.

    Raises:
        UserError: one cannot be read; or as ``answers``.
    """
    rate = None if unknown_at is None else read_rate(unknown_at, f"unknown_at is {shown(unknown_at)}")
    above = None if rate is None else threshold(model, rate, unsaved)
    pixels = decoded(images, model.clip)
    found, new = [np.zeros((0, len(model.labels)))], list[bool]()
    for start in range(0, len(images), BATCH):
        pictures, good = pixels.load(images.rows[start : start + BATCH])
        if not good.all():
            key, reason = next(iter(pixels.skipped().items()))
            raise UserError(f"{key} cannot be read ({reason}): leave it out")
        shares, _, above_it = asked(model, pictures, above)
        found.append(shares)
        new += above_it
    return np.concatenate(found), np.array(new, dtype=bool)


def as_dict(
    model: Deployed, answer: Answer, top: int, reject_below: float, unknown: bool = False
) -> dict[str, Any]:
    """Return an answer for JSON: file, class, probability, top, error; null where there is none.

    Args:
        top: number of classes, the most probable first, from 1.
        reject_below: probability, 0..1, below which the most probable class is no answer.
        unknown: whether unknown pictures were asked for: then also ``unknown`` and ``unknown_score``.
    """
    if answer.probabilities is None:
        told = {"file": answer.key, "class": None, "probability": None, "top": [], "error": answer.error}
        return told | ({"unknown": None, "unknown_score": None} if unknown else {})
    order = (-answer.probabilities).argsort(kind="stable")[:top].tolist()
    found = answer.probabilities.tolist()
    names = model.names
    ranked = [{"class": names[c], "probability": round(found[c], 6)} for c in order]
    rejected = found[order[0]] < reject_below
    told = {
        "file": answer.key,
        "class": None if rejected or answer.unknown else ranked[0]["class"],
        "probability": ranked[0]["probability"],
        "top": ranked,
        "error": None,
    }
    if unknown and answer.score is not None:
        told |= {"unknown": answer.unknown, "unknown_score": float(f"{answer.score:.6g}")}
    return told


def files(paths: Iterable[str], size: int = BATCH) -> Iterator[Store]:
    """Yield stores of at most ``size`` image files each, as they are asked for."""
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
