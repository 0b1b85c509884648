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

    everclip train 'data=hf:saved#caption=sentences' scenario.kind=data-incremental method=gcl

With a caption column, texts or lists of texts, the rows are image-text pairs: one named after "#", or called caption,
captions, sentence, sentences or text where there is no label column. Columns called task (or domain), time and group
are taken by themselves; `task=COLUMN`, `time=COLUMN` and `group=COLUMN` choose others. With `scenario.kind=time` images
with labels need a column of times, too, called time, date or timestamp, or `time=COLUMN`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from everclip.data.captions import checked
from everclip.data.formats import pairs
from everclip.data.formats.arrow import ArrowStore
from everclip.data.formats.columns import (
    cells,
    class_names,
    encoded_images,
    find_column,
    holds_texts,
    image_columns,
    is_text,
    label_columns,
)
from everclip.data.formats.hub import caches, open_splits
from everclip.data.formats.tables import MOST_IMAGES, Origin, Rows, dataset
from everclip.data.formats.times import TIME, numbered
from everclip.data.images import Dataset
from everclip.data.sources import Source
from everclip.errors import UserError, shown, suggest

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

CAPTIONS = ("caption", "captions", "sentence", "sentences", "text")
"""What caption columns are called, which are taken where there is no label column."""
TESTS = ("test", "validation", "val", "valid")


@dataclass(frozen=True)
class _Options:
    """The options that follow "#"."""

    image: str | None = None
    label: str | None = None
    domain: str | None = None
    caption: str | None = None
    task: str | None = None
    time: str | None = None
    group: str | None = None
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
        if not argument:
            raise UserError('data "hf" needs a data set: use data=hf:FOLDER, or data=hf:ORG/NAME on the hub')
        name, options = _parse(argument)
        if importlib.util.find_spec("datasets") is None:
            raise UserError('data "hf" needs the package datasets: pip install "everclip[hf]"')
        splits = open_splits(name, options.config)
        chosen = {split: splits[split] for split in _chosen(name, list(splits), options)}
        folder = Path(name) if Path(name).is_dir() else None
        if captions := _caption_column(name, next(iter(chosen.values())).features, options):
            return _captioned(argument, name, chosen, captions, options, folder)
        parts = [_part(name, split, data, options) for split, data in chosen.items()]
        if sum(len(part.labels) for part in parts) > MOST_IMAGES:
            raise UserError(f"hf:{name} has more than {MOST_IMAGES:,} images: choose a smaller split")
        domains = [part.domains for part in parts if part.domains is not None]
        if domains and len(domains) < len(parts):
            has = next(part.name for part in parts if part.domains is not None)
            raise UserError(f'only the split "{has}" of hf:{name} has a column "domain": add or rename it')
        rows = Rows(
            [label for part in parts for label in part.labels],
            [part is not parts[0] for part in parts for _ in part.labels] if len(parts) > 1 else None,
            [domain for column in domains for domain in column] if domains else None,
            parts[0].classes,
        )
        hint = f"give their column, hf:{name}#domain=COLUMN"
        origin = Origin(f"hf:{argument}", f"hf:{name}", kind, hint, folder)
        found = dataset(origin, _store(name, {part.name: part.images for part in parts}, folder), rows)
        return replace(found, times=_times(name, chosen, options)) if kind == "time" else found


def _store(name: str, images: dict[str, pa.ChunkedArray], folder: Path | None) -> ArrowStore:
    return ArrowStore(name, images, folder, [] if folder else caches())


def _times(name: str, chosen: dict[str, datasets.Dataset], options: _Options) -> NDArray[np.float64]:
    """Return the time of each image. Raises UserError where there is no such column, or it holds no times."""
    first = next(iter(chosen.values())).features
    columns = [column for column in first if column.lower() in TIME]
    return numbered(_texts(name, chosen, "time", options.time, columns), f"hf:{name}")


def _texts(
    name: str,
    chosen: dict[str, datasets.Dataset],
    what: str,
    column: str | None,
    candidates: Sequence[str] = (),
) -> list[str]:
    """Return a column of all splits as texts. Raises UserError as ``find_column`` and ``cells``."""
    return [
        text
        for split, data in chosen.items()
        for text in cells(
            name, split, data, find_column(name, what, column, data.features, candidates), what == "time"
        )
    ]


def _captioned(
    argument: str,
    name: str,
    chosen: dict[str, datasets.Dataset],
    captions: str,
    options: _Options,
    folder: Path | None,
) -> Dataset:
    """Return the splits as image-text pairs. Raises UserError where a column is missing, or a row has no caption."""
    if sum(len(data) for data in chosen.values()) > MOST_IMAGES:
        raise UserError(f"hf:{name} has more than {MOST_IMAGES:,} images: choose a smaller split")
    images, said, first = {}, list[list[str]](), next(iter(chosen.values())).features
    kept: dict[str, list[str]] = {}
    for what, given, names in (
        ("task", options.task or options.domain, ("task", "domain")),
        ("time", options.time, ("time",)),
        ("group", options.group, ("group",)),
    ):
        column = given or next((one for one in names if one in first), None)
        if column is not None:
            kept[what] = _texts(name, chosen, what, column)
    for split, data in chosen.items():
        image = find_column(name, "image", options.image, data.features, image_columns(data.features))
        images[split] = encoded_images(data, image)
        column = find_column(name, "caption", captions, data.features, [])
        for row, value in enumerate(data[column][:]):
            where = f'row {row} of the split "{split}" of hf:{name}'
            said.append(
                checked(where, value if isinstance(value, list) else [] if value is None else [value])
            )
    times = numbered(kept["time"], f"hf:{name}") if "time" in kept else None
    parts = [*chosen]
    is_test = [split != parts[0] for split, data in chosen.items() for _ in range(len(data))]
    rows = pairs.Pairs(said, is_test if len(parts) > 1 else None, kept.get("group"), kept.get("task"), times)
    return pairs.dataset(f"hf:{argument}", f"hf:{name}", _store(name, images, folder), rows)


def _caption_column(name: str, features: datasets.Features, options: _Options) -> str | None:
    """Return the column of captions, where it is asked for, or is called so and none has labels."""
    if options.caption is not None:
        return options.caption
    if options.label is not None or label_columns(features, options.domain or "domain"):
        return None
    found = [column for column in features if column.lower() in CAPTIONS and holds_texts(features[column])]
    if len(found) > 1:
        raise UserError(
            f"hf:{name} has several caption columns, {shown(', '.join(found))}: use hf:{name}#caption=COLUMN"
        )
    return found[0] if found else None


def _parse(argument: str) -> tuple[str, _Options]:
    """Return the name or folder, and the options. Raises UserError for an unknown option."""
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
    """Return the training split and, if there is one, the test split. Raises UserError for an unknown one."""
    for option in ("train", "test"):
        split = getattr(options, option)
        if split is not None and split not in splits:
            raise UserError(f"hf:{name} has no split {shown(split)}{suggest(split, splits)}")
    train = options.train or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if train is None:
        raise UserError(f'hf:{name} has no split "train" but {shown(", ".join(splits))}: use #train=SPLIT')
    test = options.test or next((split for split in TESTS if split in splits and split != train), None)
    if test == train:
        raise UserError(f"hf:{name}: the split {shown(train)} cannot be train and test: choose two")
    return [train] if test is None else [train, test]


def _part(name: str, split: str, data: datasets.Dataset, options: _Options) -> _Part:
    """Return the columns of a split. Raises UserError where one cannot be told, or a row has no label."""
    features = data.features
    image = find_column(name, "image", options.image, features, image_columns(features))
    domain = options.domain or ("domain" if is_text("domain", features) else None)
    if domain is not None:
        find_column(name, "domain", domain, features, [])
    label = find_column(name, "label", options.label, features, label_columns(features, domain))
    return _Part(
        split,
        encoded_images(data, image),
        cells(name, split, data, label),
        None if domain is None else cells(name, split, data, domain),
        class_names(features, label),
    )
