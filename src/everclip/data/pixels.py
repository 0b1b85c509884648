"""Decode images: small sets once into memory as uint8, large ones batch by batch."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from everclip.data.images import ImageSet, Store
from everclip.errors import UserError, why

log = logging.getLogger("everclip")
# We refuse what Pillow only warns of; its warning cannot be caught in several threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""The formats that Pillow may recognise, whatever a file's name says: for others, such as EPS, it starts programs."""

_UNKNOWN, _GOOD, _BROKEN = 0, 1, 2
_SPARE = 64 << 20
_BAND = 1 << 18
"""Pixels of a deep picture that are converted at a time."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any PIL image as 8-bit RGB: transparency on white, NaN black, 16-bit grey and floats of 0..1 scaled,
    infinite values white."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Return a grey picture of 16 bits or more in 8 bits, by the range that its values are in."""
    tall = max(1, _BAND // max(1, image.width))
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)

    def bands() -> Iterator[tuple[int, NDArray[np.float64]]]:
        # A band at a time: in float64 the whole picture, and a copy for each step, takes 30 bytes a pixel.
        for start in range(0, image.height, tall):
            band = image.crop((0, start, image.width, min(start + tall, image.height)))
            yield start, np.nan_to_num(np.asarray(band, dtype=np.float64), posinf=np.inf)

    highest = max(band.max(initial=0, where=band < np.inf) for _, band in bands())
    top = next((top for top in tops if highest <= top), tops[-1])
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for start, band in bands():
        grey[start : start + tall] = (band.clip(0, top) * (255 / top)).astype(np.uint8)
    return grey


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as decoded, known from the header: the tiles of a TIFF may be larger than the picture."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    sides = ((image.width, tags.get(322)), (image.height, tags.get(323)))
    width, height = (max(side, tile) if isinstance(tile, int) else side for side, tile in sides)
    return width, height


def most_pixels(width: int, height: int, size: int) -> int:
    """Return the most pixels that a picture has while its shorter side is resized to ``size``, before the crop."""
    return max(width * height, -(-(size**2) * max(width, height) // max(1, min(width, height))))


class Pixels:
    """Load rows of a store as uint8 tensors, through the model's own resize and crop; features as they are. Raises
    UserError where the model takes the other kind; a store without rows is of either.

    Args:
        store: the encoded images, or features.
        transform: PIL RGB image to PIL image of ``size`` x ``size``.
        size: side in pixels; 0 for a model that takes only features.
        cache_bytes: the whole store is kept decoded when it fits into this many bytes; 0 keeps nothing.
        workers: decoding threads; 0 decodes in the caller's thread.

    Broken images are never returned: ``broken`` maps their row to the reason.
    """

    def __init__(
        self,
        store: Store,
        transform: Callable[[Image.Image], Image.Image],
        size: int,
        cache_bytes: int = 2 << 30,
        workers: int = 2,
    ) -> None:
        if len(store.keys) and (store.width is None) != (size > 0):
            takes, given = ("images", "features") if size else ("features", "images")
            raise UserError(f"the model takes {takes} and the data are {given}: give data of {takes}")
        self.store = store
        self.size = size
        self.broken: dict[int, str] = {}
        self._transform = transform
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        rows = len(store.keys)
        shape, kind = ((3, size, size), torch.uint8) if size else ((store.width or 0,), torch.float32)
        self.cached = rows * math.prod(shape) * kind.itemsize <= cache_bytes
        # Pages are touched when a row is first written, so a run on part of a set pays for that part alone.
        self._table = torch.empty((rows if self.cached else 0, *shape), dtype=kind)
        self._state = np.zeros(rows, dtype=np.uint8)

    def _features(self, row: int) -> NDArray[np.float32] | str:
        """Return the row as float32 ``[width]``, or why there is none."""
        try:
            found = np.frombuffer(self.store.read(row), dtype="<f4").astype(np.float32)
        except (OSError, ValueError) as error:
            return why(error) if isinstance(error, OSError) else "no row of numbers"
        if len(found) != self.store.width or not np.isfinite(found).all():
            return f"no row of {self.store.width} finite numbers"
        return found

    def _decode(self, row: int) -> NDArray[np.uint8] | str:
        """Return the picture as uint8 ``[3, size, size]``, or why there is none."""
        most = Image.MAX_IMAGE_PIXELS or math.inf
        try:
            with Image.open(io.BytesIO(self.store.read(row)), formats=FORMATS) as image:
                width, height = stored_size(image)
                if most_pixels(width, height, self.size) > most:
                    return f"too {'large' if width * height > most else 'thin'}: {width} x {height} pixels"
                image.load()
                small = self._transform(to_rgb(image))
        except UnidentifiedImageError:
            return f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        except OSError as error:
            return why(error)
        except MemoryError:
            bytearray(_SPARE)  # raises again where the machine has no more, whatever the file claims
            return "it asks for more memory than there is"
        except Exception as error:  # PIL's plug-ins raise anything, from struct.error to SyntaxError
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))

    def load(
        self, rows: NDArray[np.int64]
    ) -> tuple[UInt8[Tensor, "b 3 s s"] | Float[Tensor, "b d"], NDArray[np.bool_]]:
        """Return pictures, or features, of the rows that can be read, in order, and their mask ``[len(rows)]``."""
        decode = self._decode if self.size else self._features
        missing = np.unique(rows[self._state[rows] == _UNKNOWN]) if self.cached else np.unique(rows)
        missing = missing[self._state[missing] != _BROKEN]
        run = self._pool.map if self._pool and len(missing) > 1 else map
        fresh: dict[int, Tensor] = {}
        for row, result in zip(missing.tolist(), run(decode, missing.tolist()), strict=True):
            if isinstance(result, str):
                self._break(row, result)
            elif self.cached:
                self._table[row] = torch.from_numpy(result)
                self._state[row] = _GOOD
            else:
                fresh[row] = torch.from_numpy(result)
        good = self._state[rows] != _BROKEN
        if self.cached:
            return self._table[torch.from_numpy(rows[good])], good
        pictures = [fresh[row] for row in rows[good].tolist()]
        return (torch.stack(pictures) if pictures else self._table), good

    def is_good(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the mask of rows that are not known to be broken."""
        return self._state[rows] != _BROKEN

    def readable(self, images: ImageSet) -> ImageSet:
        """Return ``images`` without those known to be broken."""
        return images.select(self.is_good(images.rows))

    def hashes(self, rows: NDArray[np.int64]) -> list[int | None]:
        """Return a hash of each row's encoded image, from 0 to 2^64 - 1; None for a broken one, which is noted."""

        def of(row: int) -> int | str:
            try:
                content = self.store.read(row)
            except OSError as error:
                return why(error)
            return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")

        run = self._pool.map if self._pool and len(rows) > 1 else map
        found = list(run(of, rows.tolist()))
        for row, result in zip(rows.tolist(), found, strict=True):
            if isinstance(result, str) and self._state[row] != _BROKEN:
                self._break(row, result)
        return [None if isinstance(result, str) else result for result in found]

    def preload(self, images: Sequence[ImageSet], step: Callable[[int], object] = lambda done: None) -> None:
        """Decode these sets now, where they are kept, so that broken images are known before the first step.

        ``step`` is called with the number of images just done.
        """
        if not self.cached:
            return
        rows = np.unique(np.concatenate([part.rows for part in images]))
        for start in range(0, len(rows), 64):
            self.load(rows[start : start + 64])
            step(min(64, len(rows) - start))

    def _break(self, row: int, reason: str) -> None:
        log.info("skipped %s: %s", self.store.keys[row], reason)
        self.broken[row] = reason
        self._state[row] = _BROKEN

    def mark_broken(self, skipped: Mapping[str, str]) -> None:
        """Take over what an interrupted run has found: path -> reason."""
        fresh = skipped.keys() - self.skipped().keys()
        if not fresh:  # as nearly always, and a set may have millions of rows
            return
        for row, key in enumerate(self.store.keys):
            if key in fresh:
                self._break(row, skipped[key])

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On closing, forget which images were found broken while open, so that no batch changes because of that."""
        before = set(self.broken)
        yield
        for row in set(self.broken) - before:
            del self.broken[row]
            self._state[row] = _UNKNOWN

    def skipped(self) -> dict[str, str]:
        """Relative path -> reason, for every image found broken so far."""
        return {self.store.keys[row]: reason for row, reason in sorted(self.broken.items())}
