"""Take images, or features, as Python callers give them, and put them into a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from everclip.data.formats.features import in_float32
from everclip.data.gathered import Encoded
from everclip.data.images import MOST_BYTES, Dataset, ImageSet, sample_ids
from everclip.data.prompts import PHOTO
from everclip.errors import UserError
from everclip.system.reading import read_bytes, readable


def table(contents: Sequence[bytes], labels: Sequence[int], width: int | None = None) -> ImageSet:
    """Return contents as a table; ``width`` is that of ``Store``."""
    keys = [f"image {number}" for number in range(len(contents))]
    rows = np.arange(len(keys), dtype=np.int64)
    of = np.asarray(labels, dtype=np.int64)
    return ImageSet(Encoded(keys, contents, width), rows, of, np.zeros_like(of), sample_ids(keys))


def encoded(images: Any, width: int | None = None) -> list[bytes]:
    """Return images as the files they are, else as PNG files; with a width, float32 rows. Raises UserError."""
    if width is not None:
        rows = np.asarray(images)
        if rows.dtype.kind != "f" or rows.ndim != 2 or rows.shape[1] != width:
            raise UserError(f"features are {rows.dtype} {list(rows.shape)}: give floats [n, {width}]")
        rows, good = in_float32(rows)
        if not good.all():
            raise UserError(f"row {int(good.argmin())} of features is not finite in float32: leave it out")
        return [row.tobytes() for row in rows]
    return [_bytes(image, number) for number, image in enumerate(images)]


def _bytes(image: Any, number: int) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        with readable(image, "give paths of image files"):
            return read_bytes(Path(image).expanduser(), MOST_BYTES)
    if isinstance(image, torch.Tensor):
        image = image.numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise UserError(f"image {number} is {image.dtype} {list(image.shape)}: give uint8 [h, w, 3]")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"image {number} is a {type(image).__name__}: give a path, PIL image, array or bytes")
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def checked(images: Any, labels: Sequence[str] | None) -> list[str]:
    """Return labels as names. Raises UserError where there is not one for each image."""
    names = [] if labels is None else [str(label).strip() for label in labels]
    if len(names) != len(images) or not len(images):
        raise UserError(f"{len(images)} images and {len(names)} labels: give one class name per image")
    if "" in names:
        raise UserError(f"label {names.index('')} is empty: give one class name per image")
    return names


def dataset(contents: Sequence[bytes], names: Sequence[str], width: int | None) -> Dataset:
    """Return encoded images as a data set to learn; ``width`` as in ``table``."""
    classes = list(dict.fromkeys(names))
    given = table(contents, [classes.index(name) for name in names], width)
    nothing = given.select(np.zeros(0, dtype=np.int64))
    return Dataset("the images", tuple(classes), ("",), given, nothing, (PHOTO,))
