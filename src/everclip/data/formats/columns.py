"""Find the columns of a Hugging Face data set: images, classes, domains, captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from everclip.errors import UserError, shown, suggest

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

LABELS = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "coarse_label")
"""Names of label columns that are not of type ClassLabel."""


def encoded_images(name: str, data: datasets.Dataset, chosen: str | None) -> pa.ChunkedArray:
    """Return the chosen column of images, else the only one of type Image or that holds bytes; none is decoded."""
    import datasets

    features = data.features
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    candidates = typed or [column for column, feature in features.items() if holds(feature, "binary")]
    image = find_column(name, "image", chosen, features, candidates)
    encoded = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    images: Any = encoded.with_format("arrow")[:]
    return images.column(0)


def find_column(
    name: str, what: str, chosen: str | None, features: datasets.Features, candidates: Sequence[str]
) -> str:
    """Return the chosen column, or the only candidate. Raises UserError where there is none, or more than one."""
    import datasets

    columns = list(features)
    if chosen is not None:
        if chosen not in columns:
            raise UserError(f"hf:{name} has no column {shown(chosen)}{suggest(chosen, columns)}")
        feature = features[chosen]
        good, kind = {
            "image": (holds(feature, "binary") or holds(feature, "string"), "encoded images or paths"),
            "caption": (holds_texts(feature), "texts"),
            "time": (isinstance(feature, datasets.Value), "times"),
        }.get(what, (is_text(chosen, features), "names or whole numbers"))
        if not good:
            raise UserError(f"the column {shown(chosen)} of hf:{name} holds no {kind}: choose another {what}")
        return chosen
    if len(candidates) == 1:
        return candidates[0]
    found = shown(", ".join(candidates or columns))
    has = f"several {what} columns," if candidates else f"no {what} column but"
    raise UserError(f"hf:{name} has {has} {found}: use hf:{name}#{what}=COLUMN")


def holds(feature: Any, kind: str) -> bool:
    """Return whether a column's cells are of a kind, "binary" or "string", or of type Image, declared or not."""
    import datasets

    if isinstance(feature, datasets.Value):
        return feature.dtype.removeprefix("large_") == kind
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    )


def label_columns(features: datasets.Features, domain: str | None) -> list[str]:
    """Return the columns of type ClassLabel, else those with a name in ``LABELS``."""
    others = [column for column in features if column != domain]
    typed = [column for column in others if class_names(features, column)]
    return typed or [column for column in others if column.lower() in LABELS and is_text(column, features)]


def class_names(features: datasets.Features, column: str) -> list[str]:
    """Return the names of a column of type ClassLabel, in its order; none for another."""
    import datasets

    feature = features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else []


def is_text(column: str, features: datasets.Features) -> bool:
    """Return whether a column is there and holds names, or numbers of classes."""
    import datasets

    feature = features.get(column)
    if isinstance(feature, datasets.Value):
        return bool(re.fullmatch(r"(large_)?string|u?int\d+", feature.dtype))
    return isinstance(feature, datasets.ClassLabel)


def cells(name: str, split: str, data: datasets.Dataset, column: str, signed: bool = False) -> list[str]:
    """Return a column of classes, domains or times as names, or numbers. Raises UserError for a row that has none.

    Args:
        signed: whether a number below 0 counts as one, rather than as unknown.
    """
    names = class_names(data.features, column)
    texts: list[str] = []
    for row, value in enumerate(data[column][:]):
        unknown = isinstance(value, int) and value < 0 and not signed  # -1: a test set without labels
        if value is None or unknown:
            text = ""
        elif names:
            text = names[value] if value < len(names) else ""
        else:
            text = str(value).strip()
        if not text:
            raise UserError(
                f'row {row} of the split "{split}" of hf:{name} has no {column}: drop it, or use #test=SPLIT'
            )
        texts.append(text)
    return texts


def holds_texts(feature: Any) -> bool:
    """Return whether a column's cells are texts or lists of texts."""
    import datasets

    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    return isinstance(inner, datasets.Value) and holds(inner, "string")
