"""Keep an index of embeddings valid across an update, map new queries to it, or rebuild it.

keep       only candidates that leave the encoder unchanged, as its fingerprint shows
adapt      a map from new to old embeddings, fitted on the update's own images and saved with the version
rebuild    embed the same content again, into a folder beside the old one
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.errors import UserError, check_choice
from everclip.index import embed, folder
from everclip.index.encoder import fingerprints
from everclip.index.folder import Vectors
from everclip.index.maps import Map, fit
from everclip.index.search import nearest
from everclip.inference.assess import decoded
from everclip.models.clip import Clip
from everclip.system.atomic import claimed
from everclip.system.outputs import check_new, named
from everclip.system.progress import Progress
from everclip.training.estimate import duration
from everclip.updating.candidates import TRAINED, Candidate
from everclip.updating.gate import Held
from everclip.updating.images import Pictures
from everclip.updating.state import State

KEEP, ADAPT, REBUILD = MODES = ("keep", "adapt", "rebuild")
NEIGHBOURS = 10
QUERIES = 200
"""Largest number of held-out images used as queries."""
TIMED = 64
"""Largest number of images to time the encoder on."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked for: one of ``MODES``, and the embeddings, which ``adapt`` and ``rebuild`` need."""

    mode: str
    vectors: Vectors | None


def asked(mode: str | None, vectors: str | None, method: str) -> Asked | None:
    """Return what the options ask for; None where there are none.

    Raises:
        UserError: they do not go together, or the folder holds no embeddings that can be read.
    """
    if mode is None:
        if vectors is not None:
            raise UserError(f"--vectors {vectors} needs --index: use --index keep, adapt or rebuild")
        return None
    check_choice("--index", mode, MODES)
    if mode == KEEP and method in TRAINED:
        raise UserError(f"--index keep trains nothing, but --method {method} does: leave one of them out")
    if vectors is None and mode != KEEP:
        raise UserError(f"--index {mode} needs --vectors: give the folder that everclip embed wrote")
    found = None if vectors is None else folder.read(Path(vectors).expanduser())
    if found is not None and not len(found):
        raise UserError(f"{vectors} has no embeddings yet: leave --index out")
    return Asked(mode, found)


class Guard:
    """Guards an index during an update.

    Args:
        state: what the update begins with.

    Raises:
        UserError: ``keep`` or ``adapt`` is asked for, and the embeddings are not those of the state's encoder.
    """

    def __init__(self, state: State, what: Asked | None) -> None:
        self._state, self._asked = state, what
        self.marks = cache(fingerprints)
        self._vectors = None if what is None else what.vectors
        self.keeps = what is not None and what.mode == KEEP
        self._mark = self.marks(state.encoder)[0]
        self._wanted = self._mark if self._vectors is None else self._vectors.table.fingerprint
        self._teacher = self._old()
        if self._teacher is None and what is not None and what.mode != REBUILD:
            assert self._vectors is not None
            raise UserError(
                f"{self._vectors.path} has embeddings of {self._vectors.table.model} ({self._wanted[:12]}),"
                f" none of {state.spec} ({self._mark[:12]}): embed with it, or use --index rebuild"
            )

    def _old(self) -> tuple[Clip, Map | None] | None:
        """Return the encoder, and its map if it needs one, whose embeddings are comparable with the index before the
        update."""
        state = self._state
        for clip in (state.encoder, state.frozen, state.tuned):
            if clip is not None and self._wanted in self.marks(clip):
                return clip, None
        mapped = self._map_of(state.encoder)
        return None if mapped is None else (state.encoder, mapped)

    def allowed(self, made: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates, with those that the index does not allow marked as not eligible.

        Raises:
            UserError: none would be left.
        """
        if not self.keeps:
            return [*made]
        found = [replace(one, eligible=one.eligible and self._valid(self._encoder(one))) for one in made]
        if any(one.eligible for one in made) and not any(one.eligible for one in found):
            raise UserError("--index keep leaves no candidate that knows all classes: use adapt or rebuild")
        return found

    def _encoder(self, one: Candidate) -> Clip:
        if one.clip is not None:
            return one.clip
        return self._state.encoder if one.name == "nothing" else self._state.frozen

    def _valid(self, clip: Clip) -> bool:
        """Return whether the index can be searched with an encoder as before."""
        return self._wanted in self.marks(clip) or self._map_of(clip) is not None

    def _map_of(self, clip: Clip) -> Map | None:
        """Return the state's map from an encoder to that of the index, if it has one."""
        found = self._state.map
        fits = found is not None and found.of in self.marks(clip) and found.to == self._wanted
        return found if fits else None

    def judge(self, after: State, pictures: Pictures, held: Held | None) -> tuple[State, dict[str, Any]]:
        """Return the state with the map that its queries need, and the verdict on the index."""
        state, clip = self._state, after.encoder
        marks, mapped = self.marks(clip), self._map_of(clip)
        told: dict[str, Any] = {
            "mode": None if self._asked is None else self._asked.mode,
            "valid": self._valid(clip),
            "before": self._mark,
            "after": marks[0],
            "vectors": None if self._vectors is None else str(self._vectors.path),
            "count": None if self._vectors is None else len(self._vectors),
            "map": None if mapped is None else mapped.kind,
        }
        told |= dict.fromkeys(("queries", "recall", "recall_mapped", "rebuild_seconds", "rebuilt"))
        if not told["valid"] and self._vectors is not None:
            images, pixels = (pictures.checks, pictures.pixels) if held is None else held[:2]
            told["rebuild_seconds"] = round(len(self._vectors) / pace(clip, images), 1)
            if self._asked is not None and self._asked.mode == ADAPT:
                mapped = self._fitted(clip, pictures)
                told["map"] = mapped.kind
            told |= self._recalls(clip, mapped, images, pixels)
            if self._asked is not None and self._asked.mode == REBUILD:
                told["rebuilt"] = str(beside(self._vectors, after.version))
        told["words"] = words(told, state.spec)
        kept = state.map if mapped is None and state.map is not None and state.map.of in marks else mapped
        return replace(after, map=kept), told

    def _fitted(self, clip: Clip, pictures: Pictures) -> Map:
        """Fit a map from the embeddings of ``clip`` to those of the index, on the update's images and class names."""
        learned, checks = pictures.new + pictures.older + pictures.exemplars, pictures.checks
        known = pictures.known
        names = [template.replace("{}", name) for name in known.names for template in known.templates]
        new = [embed.pictures(clip, part, pictures.pixels)[0] for part in (learned, checks)]
        old = [self._old_rows(part, pictures.pixels) for part in (learned, checks)]
        teacher, before = self._teacher or (clip, None)
        texts = embed.texts(clip, names), embed.texts(teacher, names)
        given = texts[1] if before is None else before(texts[1])
        of_new, of_old = (torch.cat([new[0], texts[0]]), new[1]), (torch.cat([old[0], given]), old[1])
        return fit(of_new, of_old, self.marks(clip)[0], self._wanted)

    def _old_rows(self, images: ImageSet, pixels: Pixels) -> Float32[Tensor, "n d"]:
        """Return embeddings of pictures as the index has them."""
        assert self._teacher is not None
        clip, mapped = self._teacher
        rows, _ = embed.pictures(clip, images, pixels)
        return rows if mapped is None else mapped(rows)

    def _recalls(self, clip: Clip, mapped: Map | None, images: ImageSet, pixels: Pixels) -> dict[str, Any]:
        """Return the fraction of what old queries find nearest that new queries find too, without and with the map."""
        if self._teacher is None or not len(images):
            return {}
        assert self._vectors is not None
        some = images.spread(QUERIES)
        rows, _ = embed.pictures(clip, some, pixels)
        truth = nearest(self._vectors, self._old_rows(some, pixels).numpy(), NEIGHBOURS)[1]
        queries = [rows] if mapped is None else [rows, mapped(rows)]
        found = [recall(nearest(self._vectors, one.numpy(), NEIGHBOURS)[1], truth) for one in queries]
        return {
            "queries": len(some),
            "recall": found[0],
            "recall_mapped": None if mapped is None else found[1],
        }


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the fraction of the rows in ``truth`` that the same query has in ``found``; both are ``[q, k]``."""
    shared = [len(set(one) & set(other)) for one, other in zip(found.tolist(), truth.tolist(), strict=True)]
    return float(np.mean(shared)) / truth.shape[1]


def pace(clip: Clip, images: ImageSet) -> float:
    """Measure how many images are decoded and embedded per second, here and now."""
    some = images.select(np.arange(min(TIMED, len(images))))
    begin = time.perf_counter()
    embed.pictures(clip, some, decoded(some, clip))
    return max(1, len(some)) / (time.perf_counter() - begin)


def words(told: dict[str, Any], spec: str) -> str:
    """Return the verdict's line on the index."""
    if told["valid"]:
        how = " through the map" if told["map"] else ", as the encoder is unchanged"
        return f"index valid: existing embeddings can be searched as before{how}"
    if told["count"] is None:
        return (
            f"index: the encoder changed, so embeddings that {spec} made no longer fit; --index keep allows"
            f" no such update, --index adapt --vectors FOLDER makes new queries fit them"
        )
    line = ""
    if told["recall"] is not None:
        line = f"Recall@{NEIGHBOURS} of old vectors with new queries {told['recall']:.0%}"
    if told["recall_mapped"] is not None:
        line += f", with the map {told['recall_mapped']:.0%}"
    line += "; " if line else ""
    line += f"rebuilding: {duration(told['rebuild_seconds'])} for {told['count']:,} images on this machine"
    return line if told["rebuilt"] is None else f"{line}, into {told['rebuilt']}"


def beside(vectors: Vectors, version: int) -> Path:
    """Return the folder to rebuild embeddings in."""
    path = named(vectors.path)
    return path.with_name(f"{path.name}.v{version}")


@dataclass(frozen=True, eq=False)
class Rebuild:
    """The embeddings to rebuild once a version is written.

    Args:
        vectors: the old folder, which stays.
        out: the new one.
    """

    vectors: Vectors
    work: embed.Work
    out: Path

    def run(self, clip: Clip, spec: str, progress: Progress) -> embed.Report:
        """Embed again; ``spec`` is the version's folder. Raises as ``embed.embed`` does."""
        half = self.vectors.table.dtype == "float16"
        with claimed(self.out):
            return embed.embed(clip, spec, None, self.work, self.out, half, progress)

    def command(self, spec: str) -> str:
        """Return the command that continues it."""
        option = ["--text"] if self.work.kind == folder.TEXT else []
        sources = [word for source in self.work.sources for word in (*option, source)]
        return shlex.join(["everclip", "embed", spec, *sources, "-o", str(self.out)])


def to_rebuild(what: Asked | None, version: int) -> Rebuild | None:
    """Return what to embed again for a version, if asked for.

    Raises:
        UserError: some of the content no longer exists, or the new folder's place is taken.
    """
    if what is None or what.mode != REBUILD or what.vectors is None:
        return None
    out = check_new(beside(what.vectors, version))
    kind, listed = what.vectors.table.kind, [what.vectors.listed(shard) for shard in what.vectors.shards]
    sources = [*dict.fromkeys(source for one in listed for source in one.sources)]
    if kind == folder.TEXT:
        # From the folder itself: a stranger's may name a private file as source, whose lines would be copied.
        ids = (name.encode("utf-8", "replace").decode() for one in listed for name in one.ids)
        work = embed.Work(tuple(sources), [*dict.fromkeys(ids)], None)
    else:
        work = embed.Work.of(kind, sources, written=False)
        _check_there(what.vectors, (name for one in listed for name in one.ids), work)
    return Rebuild(what.vectors, work, out)


def _check_there(vectors: Vectors, ids: Iterable[str], work: embed.Work) -> None:
    """Raise UserError where embedded pictures are no longer among those of the same sources."""
    there = set(work.ids)
    gone = [name for name in ids if name not in there]
    if gone:
        raise UserError(
            f"{gone[0]} is no longer where it was embedded from ({len(gone):,} of {len(vectors):,} pictures of"
            f" {vectors.path} are not): put them back, or leave --index out and embed again with everclip embed"
        )
