"""Embed pictures and texts shard by shard; a killed process is continued bit for bit.

Shards are cut from the whole list, readable or not, and batches from shards: so a repeated command computes the same
batches as one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from everclip.data.formats.folders import check_text
from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.errors import RunError, UserError
from everclip.index import folder, listing
from everclip.index.encoder import fingerprints
from everclip.index.folder import IMAGE, TEXT, Listed, Table, Vectors
from everclip.inference.assess import decoded
from everclip.models.clip import Clip
from everclip.system.progress import Progress
from everclip.training.disk import on_disk

BATCH = 128
"""Number of pictures or texts encoded at a time."""
SHARD = 32 * BATCH
"""Number of these per shard: the most that a kill can lose."""


@torch.inference_mode()
def width(clip: Clip) -> int:
    """Return the length of an embedding."""
    return clip.encode_image(clip.blank()).shape[1]


def pictures(
    clip: Clip, images: ImageSet, pixels: Pixels, step: Callable[[int], object] = lambda count: None
) -> tuple[Float32[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Return unit-length embeddings of the readable pictures, on the CPU, and their places in ``images``.

    The next batch is decoded while one is encoded; ``pixels.broken`` has the unreadable ones.

    Args:
        images: their ids tell them apart.
        step: is called with the number of pictures just done.
    """
    rows, ids, done = [torch.zeros(0, width(clip))], [torch.zeros(0, dtype=torch.int64)], 0
    with torch.inference_mode():
        for batch in Loader(pixels, BATCH).plain(images, BATCH):
            rows.append(clip.encode_image(batch.images).cpu())
            ids.append(batch.ids)
            step(len(batch))
            done += len(batch)
    step(len(images) - done)
    places = np.flatnonzero(np.isin(images.ids, torch.cat(ids).numpy()))
    return torch.cat(rows), torch.from_numpy(places)


def every(clip: Clip, images: ImageSet) -> Float32[Tensor, "n d"]:
    """Return unit-length embeddings of pictures, on the CPU. Raises UserError for the first that cannot be read."""
    pixels = decoded(images, clip)
    rows, _ = pictures(clip, images, pixels)
    for key, reason in pixels.skipped().items():
        raise UserError(f"{key} cannot be read ({reason}): leave it out")
    return rows


def texts(
    clip: Clip, lines: Sequence[str], step: Callable[[int], object] = lambda count: None
) -> Float32[Tensor, "n d"]:
    """Return unit-length embeddings of texts, on the CPU."""
    rows = [torch.zeros(0, width(clip))]
    with torch.inference_mode():
        for start in range(0, len(lines), BATCH):
            rows.append(clip.encode_text(lines[start : start + BATCH]).cpu())
            step(len(rows[-1]))
    return torch.cat(rows)


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be embedded: pictures, or texts.

    Args:
        sources: as they were given.
        ids: of each picture or text.
        images: the pictures, in the order of ``ids``; None where the ids are the texts.
    """

    sources: tuple[str, ...]
    ids: list[str]
    images: ImageSet | None

    @classmethod
    def of(cls, kind: str, sources: Sequence[str], written: bool = True) -> Work:
        """List what some sources hold.

        Raises:
            UserError: a name is not UTF-8; or as ``listing.pictures``, whose arguments these are, and
                ``listing.texts``.
        """
        check_text(sources, "what is to be embedded")
        if kind == IMAGE:
            images, ids = listing.pictures(sources, written)
            return cls(tuple(sources), ids, images)
        ids = list(dict.fromkeys(line for file in sources for line in listing.texts(file)))
        return cls(tuple(sources), ids, None)

    @property
    def kind(self) -> Literal["image", "text"]:
        """``image`` or ``text``."""
        return TEXT if self.images is None else IMAGE

    def without(self, done: Set[str]) -> Work:
        """Return what is left once some ids are done."""
        left = np.array([name not in done for name in self.ids], dtype=bool)
        ids = [name for name in self.ids if name not in done]
        return Work(self.sources, ids, None if self.images is None else self.images.select(left))


@dataclass(frozen=True)
class Report:
    """How embedding went.

    Args:
        vectors: embeddings in the folder.
        made: how many of them this call made, in ``seconds``.
        skipped: id -> reason, of all that the folder knows to be unreadable.
    """

    vectors: Vectors
    made: int
    seconds: float
    skipped: dict[str, str]


def embed(
    clip: Clip, model: str, image_size: int | None, work: Work, path: Path, half: bool, progress: Progress
) -> Report:
    """Write embeddings into a new folder, or continue one. Call it with ``path`` claimed.

    Args:
        model, image_size: what the encoder was opened by, for whoever opens it again.
        half: whether a new folder stores float16.

    Raises:
        UserError: the folder has embeddings of another encoder, of the other kind or precision, or is damaged.
        RunError: the disk is full or fails: what was written stays, and the same call continues; or an embedding is
            not finite.
    """
    begin = time.perf_counter()
    with on_disk(path, "make room and repeat the command"):
        there = _opened(clip, model, image_size, work, path, half)
        lists = [there.listed(shard) for shard in there.shards]
        skipped = {name: why for one in lists for name, why in one.skipped.items()}
        done = {name for one in lists for name in one.ids} | skipped.keys()
        left, before = work.without(done), len(there)
        pixels = None if left.images is None else decoded(left.images, clip)
        what = "images" if work.kind == IMAGE else "texts"
        progress.start(f"embed {what}", len(work.ids), len(work.ids) - len(left.ids))
        step = _Pace(progress, what)
        for start in range(0, len(left.ids), SHARD):
            part = slice(start, min(start + SHARD, len(left.ids)))
            rows, listed = _shard(clip, left, part, pixels, step)
            if not np.isfinite(rows).all():  # a search would refuse the whole folder
                raise RunError(f"{model} gives embeddings that are not finite: use another copy")
            there = folder.append(there, rows, listed)
            skipped |= listed.skipped
    return Report(there, len(there) - before, time.perf_counter() - begin, skipped)


def _shard(
    clip: Clip, work: Work, part: slice, pixels: Pixels | None, step: Callable[[int], object]
) -> tuple[Float32[np.ndarray, "n d"], Listed]:
    """Return the embeddings of a shard, and what they are."""
    ids, sources = work.ids[part], [*work.sources]
    if work.images is None or pixels is None:
        return texts(clip, ids, step).numpy(), Listed(ids, {}, sources)
    images = work.images.select(np.arange(part.start, part.stop))
    rows, good = pictures(clip, images, pixels, step)
    kept = set(good.tolist())
    broken = {
        name: pixels.broken[row]
        for place, (name, row) in enumerate(zip(ids, images.rows.tolist(), strict=True))
        if place not in kept
    }
    return rows.numpy(), Listed([ids[place] for place in good.tolist()], broken, sources)


class _Pace:
    """Shows how many are done per second."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._begin, self._done = time.perf_counter(), 0

    def __call__(self, count: int) -> None:
        self._done += count
        pace = max(self._done, 1e-9) / max(time.perf_counter() - self._begin, 1e-9)
        self._progress.step(f"{pace:,.0f} {self._what}/s", count)


def _opened(clip: Clip, model: str, image_size: int | None, work: Work, path: Path, half: bool) -> Vectors:
    """Return the folder to write to, new or existing. Raises UserError where these embeddings do not belong in it."""
    mark, earlier = fingerprints(clip)
    if not path.exists() or not any(path.iterdir()):
        kind = "float16" if half else "float32"
        return folder.create(path, Table(work.kind, model, image_size, mark, width(clip), kind))
    there = folder.read(path, whole=True)
    table = there.table
    if table.fingerprint not in (mark, earlier):
        raise UserError(
            f"{path} has embeddings of {table.model} (fingerprint {table.fingerprint[:12]}), but {model} is"
            f" another encoder ({mark[:12]}): embed into a new folder, or give the folder's own model"
        )
    if table.kind != work.kind:
        raise UserError(f"{path} has embeddings of {table.kind}s: embed {work.kind}s into a separate folder")
    if half and table.dtype != "float16":
        raise UserError(f"{path} has embeddings in {table.dtype}: leave --fp16 out, or use a new folder")
    return there
