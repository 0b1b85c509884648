"""Answer a batch of requests with one version: pictures together, and texts together."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from everclip.data.gathered import Encoded
from everclip.data.pixels import FORMATS, most_pixels, stored_size
from everclip.errors import UserError, memory_words
from everclip.index.queries import Asker
from everclip.index.search import nearest
from everclip.inference.predict import answers, as_dict
from everclip.inference.unknown import threshold
from everclip.runs.words import several
from everclip.serving.current import Current, Say, Served
from everclip.serving.limits import MEGA, Refused, without_folders
from everclip.system.text import printable

AT_ONCE = 100 * MEGA
"""Largest number of pixels decoded together, before or after resizing, whichever is more: each takes 10 to 20 bytes."""
Kind = Literal["predict", "embed", "search"]
Json = dict[str, Any]
Result = Json | Refused


@dataclass(frozen=True)
class Ask:
    """A request.

    Args:
        content: an encoded picture, or a text.
        top: number of classes, or of embeddings, to return.
        reject_below: as for ``as_dict``.
        unknown_at: rate of false alarms of "unknown", 0..1; None: no picture is called unknown.
    """

    kind: Kind
    content: bytes | str
    top: int = 1
    reject_below: float = 0.0
    unknown_at: float | None = None


class Answering:
    """Answers batches.

    Args:
        current: the version in use, taken once per batch.
        pixels: largest number for one picture, as sent or resized.
        say: takes one line about a request that fails on our side.
    """

    def __init__(self, current: Current, pixels: int, say: Say) -> None:
        self._current, self._pixels, self._say = current, pixels, say
        self._ways: Mapping[Kind, Callable[[Served, Sequence[Ask]], list[Result]]] = {
            "predict": _predicted,
            "embed": _embedded,
            "search": _searched,
        }

    def __call__(self, asks: Sequence[Ask]) -> list[Result]:
        """Return the result of each request, in their order. Never raises."""
        served = self._current.now
        results: dict[int, Result] = {}
        groups: dict[tuple[Kind, type, float | None, int], list[int]] = {}
        part, together = 0, 0
        clip = served.model.clip
        side = clip.image_size if clip.preprocessing()["resize_mode"] == "shortest" else 0
        for place, ask in enumerate(asks):
            pixels, large = 0, ""
            if isinstance(ask.content, bytes):
                pixels, large = _measured(ask.content, self._pixels, side)
            if large:
                results[place] = Refused(413, large)
                continue
            together += pixels
            if together > AT_ONCE:
                part, together = part + 1, pixels
            groups.setdefault((ask.kind, type(ask.content), ask.unknown_at, part), []).append(place)
        for (kind, *_), places in groups.items():
            found = self._group(served, kind, [asks[place] for place in places])
            results.update(zip(places, found, strict=True))
        return [results[place] for place in range(len(asks))]

    def _group(self, served: Served, kind: Kind, asks: Sequence[Ask]) -> list[Result]:
        try:
            found = self._ways[kind](served, asks)
        except BaseException as error:  # a broken shard, no memory, a plug-in that exits
            words = " ".join((memory_words(error) or f"{type(error).__name__}: {error}").split())
            with suppress(Exception):  # a log that cannot be written costs no other answer of the batch
                self._say(f"{several(len(asks), 'request')} of /{kind} failed: {printable(words)}")
            failed = Refused(500, f"/{kind} failed ({type(error).__name__}): see the server's log")
            return [failed] * len(asks)
        return [one if isinstance(one, Refused) else one | served.label for one in found]


def _measured(content: bytes, most: int, size: int) -> tuple[int, str]:
    """Return the number of pixels of a picture, and a message if they are too many; only its header is read.

    Args:
        size: side of the model's pictures, if the shorter side is resized to it; else 0.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = stored_size(image)
    except Image.DecompressionBombError:
        return 0, f"the picture has more than {most / MEGA:g} million pixels: send a smaller one"
    except Exception:  # decoding says what is wrong with it
        return 0, ""
    pixels = most_pixels(width, height, size)
    if pixels <= most:
        return pixels, ""
    thin = "" if width * height > most else f" once its shorter side has {size}"
    words = f"{width} x {height} pixels, more than {most / MEGA:g} million{thin}"
    return 0, f"the picture has {words}: send a {'less thin' if thin else 'smaller'} one"


def _store(asks: Sequence[Ask]) -> Encoded:
    contents = [ask.content for ask in asks if isinstance(ask.content, bytes)]
    return Encoded(["a picture"] * len(contents), contents)


def _unreadable(reason: str) -> Refused:
    return Refused(422, f"the picture cannot be read ({without_folders(reason)}): send another one")


def _predicted(served: Served, asks: Sequence[Ask]) -> list[Result]:
    """Classify pictures: what ``everclip predict --json`` prints, without ``file``."""
    found: list[Result] = []
    rate = asks[0].unknown_at  # all of a group ask for the same
    try:
        if rate is not None:
            threshold(served.model, rate)
    except UserError as error:
        return [Refused(400, served.public(str(error)))] * len(asks)
    told = [*answers(served.model, [_store(asks)], rate)]
    for ask, answer in zip(asks, told, strict=True):
        shown = as_dict(served.model, answer, ask.top, ask.reject_below, ask.unknown_at is not None)
        del shown["file"]
        found.append(shown if shown["error"] is None else _unreadable(shown["error"]))
    return found


def _embedded(served: Served, asks: Sequence[Ask]) -> list[Result]:
    """Embed pictures, or texts, as ``everclip embed`` does with this version."""

    def shown(row: Float32[np.ndarray, " d"]) -> Json:
        return {"embedding": [round(value, 7) for value in row.tolist()], "fingerprint": served.mark}

    return _each(served.own, asks, lambda rows: [shown(row) for row in rows])


def _searched(served: Served, asks: Sequence[Ask]) -> list[Result]:
    """Find the embeddings nearest to pictures, or to texts."""
    vectors, asking = served.vectors, served.asking
    if vectors is None or asking is None:
        why = "the server has no embeddings: start it with --vectors DIR"
        if served.unfit:
            why = f"the embeddings do not fit the version in use ({served.public(served.unfit)})"
        return [Refused(503, why)] * len(asks)
    most = max(ask.top for ask in asks)

    def shown(rows: Float32[np.ndarray, "n d"]) -> list[Json]:
        found = []
        for values, places in zip(*(part.tolist() for part in nearest(vectors, rows, most)), strict=True):
            pairs = zip(vectors.names(places), values, strict=True)
            found.append({"found": [{"id": name, "cosine": round(value, 6)} for name, value in pairs]})
        return found

    found = _each(asking, asks, shown)
    for ask, one in zip(asks, found, strict=True):
        if not isinstance(one, Refused):
            one["found"] = one["found"][: ask.top]
    return found


def _each(
    asker: Asker, asks: Sequence[Ask], shown: Callable[[Float32[np.ndarray, "n d"]], list[Json]]
) -> list[Result]:
    """Embed the contents of requests, and show the rows of those that can be read."""
    texts = [ask.content for ask in asks if isinstance(ask.content, str)]
    if texts:
        return [*shown(asker.texts(texts))]
    rows, broken = asker.pictures(_store(asks), min(8, os.cpu_count() or 1))
    good = iter(shown(rows) if len(rows) else ())
    return [_unreadable(broken[row]) if row in broken else next(good) for row in range(len(asks))]
