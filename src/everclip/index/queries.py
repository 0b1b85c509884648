"""Embed queries so that they fit a folder of embeddings, or refuse them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from everclip.data.formats.folders import SUFFIXES
from everclip.data.images import FileStore, Store
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.index.embed import width
from everclip.index.encoder import fingerprints, open_encoder
from everclip.index.folder import IMAGE, TEXT, Vectors
from everclip.index.maps import FILE, Map, load
from everclip.inference.model import LOCAL, is_learned
from everclip.models.clip import Clip
from everclip.system.reading import readable


@dataclass(frozen=True, eq=False)
class Asker:
    """An encoder whose embeddings are comparable with a folder's, through a map if there is one."""

    clip: Clip
    map: Map | None = None

    def embed(self, query: str) -> Float32[np.ndarray, "1 d"]:
        """Embed a query to unit length: a picture if it names a file, else a text.

        Raises:
            UserError: the file is not a picture.
        """
        if kind_of(query) == TEXT:
            return self.texts([query])
        rows, broken = self.pictures(FileStore(Path(), [query]))
        if broken:
            raise UserError(f"{query} cannot be read ({broken[0]}): give a picture, or a text")
        return rows

    @torch.inference_mode()
    def texts(self, queries: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """Embed texts to unit length, whatever they name."""
        return self._mapped(self.clip.encode_text(queries))

    @torch.inference_mode()
    def pictures(
        self, store: Store, workers: int = 0
    ) -> tuple[Float32[np.ndarray, "n d"], Mapping[int, str]]:
        """Embed the readable pictures of a store to unit length; also return the rows of the others, with reasons.

        Args:
            workers: as for ``Pixels``.
        """
        pixels = Pixels(store, self.clip.eval_transform, self.clip.image_size, 0, workers)
        images, good = pixels.load(np.arange(len(store.keys), dtype=np.int64))
        if not good.any():
            return np.zeros((0, 0), dtype=np.float32), pixels.broken
        return self._mapped(self.clip.encode_image(images)), pixels.broken

    def _mapped(self, rows: Float32[torch.Tensor, "n d"]) -> Float32[np.ndarray, "n d"]:
        return (rows.cpu() if self.map is None else self.map(rows.cpu())).numpy()


def kind_of(query: str) -> str:
    """Return ``image`` if a query names a file, else ``text``. Raises UserError if a picture seems to be missing."""
    try:
        if Path(query).is_file():
            return IMAGE
    except OSError:  # a text that is too long for a file's name
        return TEXT
    if Path(query).suffix.lower() in SUFFIXES:
        raise UserError(f"{query} does not exist: give an existing picture, or a text")
    return TEXT


def asker(vectors: Vectors, model: str | None = None) -> Asker:
    """Return the encoder of a folder's embeddings, or another one that fits it.

    Args:
        model: instead of the one that the folder names.

    Raises:
        UserError: no such model, or one whose embeddings cannot be compared with these.
    """
    table = vectors.table
    spec = table.model if model is None else model
    size = None if is_learned(spec) else table.image_size
    try:
        clip = open_encoder(spec, size)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(f"{error}; or give the model of {vectors.path} as --model MODEL") from error
    return fitting(vectors, clip, spec)


def fitting(vectors: Vectors, clip: Clip, spec: str) -> Asker:
    """Return an Asker for an encoder whose queries fit a folder's embeddings.

    Args:
        spec: what the encoder was opened by, which may have a map to these embeddings.

    Raises:
        UserError: it is another encoder, without such a map, or its map takes embeddings of another width.
    """
    wanted, marks, mapped = vectors.table.fingerprint, fingerprints(clip), _map_of(spec)
    if wanted in marks:
        return Asker(clip)
    if mapped is not None and mapped.of in marks and mapped.to == wanted:
        if len(mapped.bias) != width(clip):
            widths = f"of {len(mapped.bias)} numbers, and {spec} gives {width(clip)}"
            raise UserError(f"the map {_file_of(spec)} takes embeddings {widths}: use another copy of {spec}")
        return Asker(clip, mapped)
    raise UserError(
        f"{spec} (fingerprint {marks[0][:12]}) is not the encoder of {vectors.path} ({wanted[:12]}): use the"
        f" model that made them, or embed again with everclip embed {spec}"
    )


def _file_of(spec: str) -> Path:
    return Path(spec.removeprefix(LOCAL)) / FILE


def _map_of(spec: str) -> Map | None:
    """Return the map that a version has. Raises UserError where it cannot be read."""
    file = _file_of(spec).expanduser()
    if not file.is_file():
        return None
    with readable(file, f"use another copy of {spec}"):
        return load(file)
