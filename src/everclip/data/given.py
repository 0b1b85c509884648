"""Take images, or features, as Python callers give them, and put them into a table."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from everclip.data.formats.features import in_float32
from everclip.data.gathered import Encoded
from everclip.data.images import MOST_BYTES, Dataset, ImageSet, sample_ids
from everclip.data.pixels import to_rgb
from everclip.data.prompts import PHOTO, warn_of_alike
from everclip.errors import UserError, shown, why
from everclip.system.reading import read_bytes, readable

PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
"""Modes of PIL images that a PNG file keeps as they are."""
_NO_NAMES = bytes | list | tuple | dict | set | np.ndarray | torch.Tensor | Image.Image
"""Types that have a text form, too, but are not class names."""


def several(images: Any) -> None:
    """Raise UserError for one image, whose rows or letters would count as images, and for what has no length."""
    if isinstance(images, Dataset):
        return
    one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    if isinstance(images, torch.Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OU"):
        one = images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (3, 4))
    if one or not _sized(images):
        what = "one image" if one else f"a {type(images).__name__}"
        raise UserError(f"images is {what}: give a list of images, or an array [n, h, w, 3]")


def lines(texts: Any) -> list[str]:
    """Return texts as a list. Raises UserError for a single text, and for anything but texts."""
    if isinstance(texts, str) or not np.iterable(texts):
        what = "one text" if isinstance(texts, str) else f"a {type(texts).__name__}"
        raise UserError(f"texts is {what}: give a list of texts")
    found = [*texts]
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"text {number} is a {type(text).__name__}: give a list of texts")
    return found


def either(images: Any, features: Any, spec: str, width: int | None) -> Any:
    """Return what is given to learn from or to name.

    Args:
        spec, width: the model's, the latter as in ``encoded``.

    Raises:
        UserError: both or neither are given, the model does not take what is given, or as in ``several``.
    """
    given = images if features is None else features
    if given is None or (images is not None and features is not None):
        raise UserError("give either images or features")
    if not isinstance(given, Dataset) and (features is None) != (width is None):
        takes = "images" if width is None else "features"
        raise UserError(f"{spec} takes {takes}: give {takes}=...")
    if features is None:
        several(given)
    return given


def to_learn(images: Any, labels: Any, width: int | None, known: Collection[str] = ()) -> Dataset:
    """Return images, or with a width features, as a data set; ``known`` as in ``named``. Raises UserError for labels
    that do not go with them."""
    if not isinstance(images, Dataset):
        return dataset(pairs(images, labels, width, known), width)
    if labels is not None:
        raise UserError("a Dataset has its own labels: leave labels out")
    return images


def to_test(test: Any, width: int | None, known: Collection[str] = ()) -> Dataset:
    """Return images and their labels as a test part, or a Dataset as it is; ``known`` as in ``named``. Raises UserError
    for what is neither."""
    if isinstance(test, Dataset):
        return test
    if not isinstance(test, tuple | list) or len(test) != 2 or isinstance(test[0], Dataset):
        raise UserError("test is not a pair of images and labels: give test=(images, labels), or a Dataset")
    images, labels = test
    if width is None:
        several(images)
    found = _dataset(pairs(images, labels, width, known), width)
    return replace(found, train=found.test, test=found.train)


def _sized(value: Any) -> bool:
    """Return whether a value has a length; an array of no dimensions has none."""
    try:
        len(value)
    except TypeError:
        return False
    return True


def table(contents: Sequence[bytes], labels: Sequence[int], width: int | None = None) -> ImageSet:
    """Return contents as a table; ``width`` is that of ``Store``."""
    keys = [f"image {number}" for number in range(len(contents))]
    rows = np.arange(len(keys), dtype=np.int64)
    of = np.asarray(labels, dtype=np.int64)
    return ImageSet(Encoded(keys, contents, width), rows, of, np.zeros_like(of), sample_ids(keys))


def whole(images: Any, width: int | None) -> ImageSet:
    """Return images without labels, or those of a Dataset to test on, as a table; ``width`` as in ``encoded``. Raises
    UserError."""
    if isinstance(images, Dataset):
        return images.whole()
    return table(encoded(images, width), [0] * len(images), width)


def pairs(
    images: Any, labels: Any, width: int | None, known: Collection[str] = ()
) -> list[tuple[bytes, str]]:
    """Return images as ``encoded`` does, each with its name, as ``named`` does. Raises UserError as they do."""
    names = checked(images, labels, known)
    return [*zip(encoded(images, width), names, strict=True)]


def encoded(images: Any, width: int | None = None) -> list[bytes]:
    """Return images as the files they are, else as PNG files; with a width, float32 rows. Raises UserError."""
    if width is not None:
        rows = _array(images)
        if rows.dtype.kind != "f" or rows.ndim != 2 or rows.shape[1] != width:
            raise UserError(f"features are {rows.dtype} {list(rows.shape)}: give floats [n, {width}]")
        rows, good = in_float32(rows)
        if not good.all():
            raise UserError(f"row {int(good.argmin())} of features is not finite in float32: leave it out")
        return [row.tobytes() for row in rows]
    return [_bytes(image, number) for number, image in enumerate(images)]


def _array(features: Any) -> NDArray[Any]:
    """Return what is given as an array of numpy's. Raises UserError where it is none."""
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu()
        features = features.float() if features.dtype == torch.bfloat16 else features  # which numpy lacks
    try:
        return np.asarray(features)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"features are not an array ({why(error)}): give floats [n, d]") from error


def _bytes(image: Any, number: int) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        with readable(image, "give paths of image files"):
            return read_bytes(Path(os.path.expanduser(image)), MOST_BYTES)
    if isinstance(image, torch.Tensor | np.ndarray):
        image = _array(image)
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise UserError(f"image {number} is {image.dtype} {list(image.shape)}: give uint8 [h, w, 3]")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"image {number} is a {type(image).__name__}: give a path, PIL image, array or bytes")
    if not all(image.size):
        raise UserError(f"image {number} has no pixels: leave it out")
    content = io.BytesIO()
    try:  # PIL decodes an opened file only now
        (image if image.mode in PNG else to_rgb(image)).save(content, "PNG", compress_level=1)
    except Exception as error:  # the decoders of damaged files raise anything
        raise UserError(f"image {number} cannot be read ({why(error)}): leave it out") from error
    return content.getvalue()


def checked(images: Any, labels: Any, known: Collection[str] = ()) -> list[str]:
    """Return labels as names, as ``named`` does. Raises UserError where there is not one for each image."""
    if not _sized(images):
        raise UserError(f"features is a {type(images).__name__} without rows: give floats [n, d]")
    names = [] if labels is None else named(labels, ("label", "labels"), "one class name per image", known)
    if len(names) != len(images) or not len(images):
        raise UserError(f"{len(images)} images and {len(names)} labels: give one class name per image")
    if "" in names:
        raise UserError(f"label {names.index('')} is empty: give one class name per image")
    return names


def named(values: Any, kind: tuple[str, str], wanted: str, known: Collection[str] = ()) -> list[str]:
    """Return texts or numbers as names. A whole number has one name, however it is given: 1 and 1.0 are "1", or "1.0"
    where that alone is among the names ``known``; where both names are, each is its own.

    Args:
        kind: what one of them, and all of them, are called.
        wanted: what to give, for messages.

    Raises:
        UserError: no list, or one of them is missing or neither a text nor a number.
    """
    if isinstance(values, str) or not np.iterable(values):
        what = "text" if isinstance(values, str) else type(values).__name__
        raise UserError(f"{kind[1]} is one {what}, {shown(str(values))}: give a list, {wanted}")
    names, known = list[str](), {*known}
    for number, value in enumerate(values):
        value = value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
        missing = not isinstance(value, str) and str(value) in ("None", "nan", "NaT", "<NA>")
        if missing or isinstance(value, _NO_NAMES):
            what = "missing" if missing else f"a {type(value).__name__}"
            raise UserError(f"{kind[0]} {number} is {what}: give {wanted}")
        name = str(value).strip()
        if name not in known and isinstance(value, float | np.floating) and value.is_integer():
            name = str(int(value))
        elif name not in known and isinstance(value, int | np.integer) and f"{name}.0" in known:
            name = f"{name}.0"
        names.append(name)
    return names


def dataset(images: Sequence[tuple[bytes, str]], width: int | None) -> Dataset:
    """Return ``pairs`` as a data set to learn; ``width`` as in ``table``. Warns of names that text towers do not tell
    apart."""
    found = _dataset(images, width)
    if width is None:
        warn_of_alike(found.class_names)
    return found


def _dataset(images: Sequence[tuple[bytes, str]], width: int | None) -> Dataset:
    contents, names = zip(*images, strict=True)
    label_of = {name: label for label, name in enumerate(dict.fromkeys(names))}
    given = table(contents, [label_of[name] for name in names], width)
    nothing = given.select(np.zeros(0, dtype=np.int64))
    return Dataset("the images", tuple(label_of), ("",), given, nothing, (PHOTO,))
