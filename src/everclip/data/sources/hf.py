"""hf:NAME - a Hugging Face data set, from a folder or the hub; needs pip install "everclip[hf]".

    everclip train data=hf:uoft-cs/cifar10
    everclip train 'data=hf:uoft-cs/cifar100#image=img,label=fine_label'
    everclip train data=hf:saved scenario.kind=domain-incremental       # a folder, with a column "domain"

NAME is a folder that `save_to_disk` wrote, a folder of .parquet files or of images in CLASS folders, or a name on the
hub. The image column is that of type Image, the label column that of type ClassLabel, or one called label, class or the
like; where there are several, choose after "#". There too: `domain=COLUMN` (one called domain is taken by itself),
`config=NAME`, and `train=SPLIT,test=SPLIT` for other splits than train and test (else validation). Without a test
split, a fifth of each class in each domain is held out. Classes of type ClassLabel keep its order, other classes and
the domains are in alphabetical order; `scenario.order` lists another. `classnames.txt` and `templates.txt` in the
folder override names and prompt.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip.data.formats.arrow import ArrowStore
from everclip.data.formats.hub import caches, open_splits
from everclip.data.formats.tables import MOST_IMAGES, Origin, Rows, dataset
from everclip.data.images import Dataset
from everclip.data.sources import Source
from everclip.errors import UserError, shown, suggest

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

LABELS = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "coarse_label")
"""What label columns are called that are not of type ClassLabel."""
TESTS = ("test", "validation", "val", "valid")


@dataclass(frozen=True)
class _Options:
    """The options that follow "#"."""

    image: str | None = None
    label: str | None = None
    domain: str | None = None
    config: str | None = None
    train: str | None = None
    test: str | None = None


@dataclass(frozen=True, eq=False)
class _Part:
    """A split as columns: the encoded images, and each one's class and domain; and the order of its classes."""

    name: str
    images: pa.ChunkedArray
    labels: list[str]
    domains: list[str] | None
    classes: list[str]


class HuggingFace(Source):
    """A data set of the package datasets."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        """The images of a Hugging Face data set, for a scenario of this ``kind``.

        Raises:
            UserError: the package or the data set is missing, or a column or a split cannot be told.
        """
        if not argument:
            raise UserError(
                'data "hf" needs a data set: use data=hf:FOLDER, or data=hf:ORG/NAME for one on the hub'
            )
        name, options = _parse(argument)
        if importlib.util.find_spec("datasets") is None:
            raise UserError('data "hf" needs the package datasets: pip install "everclip[hf]"')
        splits = open_splits(name, options.config)
        parts = [_part(name, split, splits[split], options) for split in _chosen(name, list(splits), options)]
        if sum(len(part.labels) for part in parts) > MOST_IMAGES:
            raise UserError(f"hf:{name} has more than {MOST_IMAGES:,} images: choose a smaller split")
        folder = Path(name) if Path(name).is_dir() else None
        domains = [part.domains for part in parts if part.domains is not None]
        if domains and len(domains) < len(parts):
            has = next(part.name for part in parts if part.domains is not None)
            raise UserError(
                f'only the split "{has}" of hf:{name} has a column "domain": write it for the others too, or rename it'
            )
        rows = Rows(
            [label for part in parts for label in part.labels],
            [part is not parts[0] for part in parts for _ in part.labels] if len(parts) > 1 else None,
            [domain for column in domains for domain in column] if domains else None,
            parts[0].classes,
        )
        hint = f"give their column, hf:{name}#domain=COLUMN"
        origin = Origin(f"hf:{argument}", f"hf:{name}", kind, hint, folder)
        store = ArrowStore(
            name, {part.name: part.images for part in parts}, folder, [] if folder else caches()
        )
        return dataset(origin, store, rows)


def _parse(argument: str) -> tuple[str, _Options]:
    """The name or folder, and the options. Raises UserError for an unknown option."""
    name, mark, text = argument.rpartition("#") if re.search(r"#\w+=[^#]*$", argument) else (argument, "", "")
    known = [field.name for field in fields(_Options)]
    found: dict[str, str] = {}
    for option in text.split(",") if mark else []:
        key, _, value = option.partition("=")
        if key not in known:
            raise UserError(f'data "hf" has no option {shown(key)}{suggest(key, known)}')
        if key in found or not value:
            raise UserError(f'data "hf": use {key}=NAME once after "#", not {shown(text)}')
        found[key] = value
    return os.path.expanduser(name), _Options(**found)


def _chosen(name: str, splits: Sequence[str], options: _Options) -> list[str]:
    """The training split and, if there is one, the test split. Raises UserError for an unknown one."""
    for option in ("train", "test"):
        split = getattr(options, option)
        if split is not None and split not in splits:
            raise UserError(f"hf:{name} has no split {shown(split)}{suggest(split, splits)}")
    train = options.train or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if train is None:
        raise UserError(
            f'hf:{name} has no split "train" but {shown(", ".join(splits))}: use #train=SPLIT,test=SPLIT'
        )
    test = options.test or next((split for split in TESTS if split in splits and split != train), None)
    if test == train:
        raise UserError(
            f"hf:{name}: the split {shown(train)} cannot be both train and test: choose two, or leave test out"
        )
    return [train] if test is None else [train, test]


def _part(name: str, split: str, data: datasets.Dataset, options: _Options) -> _Part:
    """The columns of a split. Raises UserError where one cannot be told, or a row has no label."""
    import datasets

    features = data.features
    image = _column(name, "image", options.image, features, _image_columns(features))
    domain = options.domain or ("domain" if _is_text("domain", features) else None)
    if domain is not None:
        _column(name, "domain", domain, features, [])
    label = _column(name, "label", options.label, features, _label_columns(features, domain))
    encoded = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    images: Any = encoded.with_format("arrow")[:]
    return _Part(
        split,
        images.column(0),
        _texts(name, split, data, label),
        None if domain is None else _texts(name, split, data, domain),
        _class_names(features, label),
    )


def _column(
    name: str, what: str, chosen: str | None, features: datasets.Features, candidates: Sequence[str]
) -> str:
    """The chosen column, or the only candidate. Raises UserError where there is none, or more than one."""
    columns = list(features)
    if chosen is not None:
        if chosen not in columns:
            raise UserError(f"hf:{name} has no column {shown(chosen)}{suggest(chosen, columns)}")
        if what == "image" and not (_holds(features[chosen], "binary") or _holds(features[chosen], "string")):
            raise UserError(
                f"the column {shown(chosen)} of hf:{name} holds no encoded images or paths: choose another image"
            )
        if what != "image" and not _is_text(chosen, features):
            raise UserError(
                f"the column {shown(chosen)} of hf:{name} holds no names or whole numbers: choose another {what}"
            )
        return chosen
    if len(candidates) == 1:
        return candidates[0]
    found = shown(", ".join(candidates or columns))
    has = f"several {what} columns," if candidates else f"no {what} column but"
    raise UserError(f"hf:{name} has {has} {found}: use hf:{name}#{what}=COLUMN")


def _image_columns(features: datasets.Features) -> list[str]:
    """Those of type Image, else those that hold bytes."""
    import datasets

    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    return typed or [column for column, feature in features.items() if _holds(feature, "binary")]


def _holds(feature: Any, kind: str) -> bool:
    """Return whether a column's cells are of a kind, "binary" or "string", or of type Image, declared or not."""
    import datasets

    if isinstance(feature, datasets.Value):
        return feature.dtype.removeprefix("large_") == kind
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    )


def _label_columns(features: datasets.Features, domain: str | None) -> list[str]:
    """Those of type ClassLabel, else those that are called so."""
    others = [column for column in features if column != domain]
    typed = [column for column in others if _class_names(features, column)]
    return typed or [column for column in others if column.lower() in LABELS and _is_text(column, features)]


def _class_names(features: datasets.Features, column: str) -> list[str]:
    """The names of a column of type ClassLabel, in its order; none for another."""
    import datasets

    feature = features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else []


def _is_text(column: str, features: datasets.Features) -> bool:
    """Return whether a column is there and holds names, or numbers of classes."""
    import datasets

    feature = features.get(column)
    if isinstance(feature, datasets.Value):
        return bool(re.fullmatch(r"(large_)?string|u?int\d+", feature.dtype))
    return isinstance(feature, datasets.ClassLabel)


def _texts(name: str, split: str, data: datasets.Dataset, column: str) -> list[str]:
    """A column of classes or domains as names, or numbers. Raises UserError for a row that has none."""
    names = _class_names(data.features, column)
    texts: list[str] = []
    for row, value in enumerate(data[column][:]):
        if value is None or (isinstance(value, int) and value < 0):  # -1: a test set without labels
            text = ""
        elif names:
            text = names[value] if value < len(names) else ""
        else:
            text = str(value).strip()
        if not text:
            raise UserError(
                f'row {row} of the split "{split}" of hf:{name} has no {column}: leave such rows out, or write'
                f" hf:{name}#test=SPLIT with a labelled one"
            )
        texts.append(text)
    return texts
