"""hf:NAME - a Hugging Face data set, from a folder or the hub; needs pip install "everclip[hf]".

    everclip train data=hf:uoft-cs/cifar10
    everclip train 'data=hf:uoft-cs/cifar100#image=img,label=fine_label'
    everclip train data=hf:saved scenario.kind=domain-incremental       # a folder, with a column "domain"

NAME is a folder that `save_to_disk` wrote, a folder of .parquet files or of images in CLASS folders, or a name on the
hub. The image column is that of type Image, the label column that of type ClassLabel, or one called label, class or the
like; where there are several, choose after "#". There too: `domain=COLUMN` (one called domain is found anyway),
`config=NAME`, and `train=SPLIT,test=SPLIT` for other splits than train and test (else validation). Without a test
split, a fifth of each class in each domain is held out. Classes of type ClassLabel keep its order, other classes and
the domains are in alphabetical order; `scenario.order` lists another. `classnames.txt` and `templates.txt` in the
folder override names and prompt.

    everclip train 'data=hf:saved#caption=sentences' scenario.kind=data-incremental method=gcl

With a caption column, texts or lists of texts, the rows are image-text pairs: one named after "#", or called caption,
captions, sentence, sentences or text where there is no label column. Columns called task (or domain), time (or date,
timestamp) and group are found anyway; `task=COLUMN`, `time=COLUMN` and `group=COLUMN` choose others. With
`scenario.kind=time` images with labels need a column of times, too.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from everclip.data.captions import checked
from everclip.data.formats import columns, pairs
from everclip.data.formats.arrow import ArrowStore
from everclip.data.formats.columns import find_column
from everclip.data.formats.hub import caches, in_cache, open_splits
from everclip.data.formats.tables import MOST_IMAGES, Origin, Rows, dataset
from everclip.data.formats.times import TIME, numbered
from everclip.data.images import Dataset
from everclip.data.sources import TASKS, Source
from everclip.errors import UserError, shown, suggest

if TYPE_CHECKING:
    import datasets

Splits = Mapping[str, "datasets.Dataset"]
CAPTIONS = ("caption", "captions", "sentence", "sentences", "text")
"""Names of caption columns, which are used where there is no label column."""
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


class HuggingFace(Source):
    """A data set of the package datasets."""

    def missing(self, argument: str | None) -> list[str]:
        """Return a line for a data set of the hub that was never prepared here."""
        name, options = _parse(argument or "")
        here = not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith(".") or os.path.exists(name)
        if here or importlib.util.find_spec("datasets") is None or in_cache(name, options.config):
            return []
        return [f"hf:{name} is not in the cache: it will be downloaded when it is trained on"]

    def hub(self) -> str:
        """Return the hub's address, unless it may not be asked."""
        from huggingface_hub import constants

        return "" if constants.HF_HUB_OFFLINE else constants.ENDPOINT

    def load(self, argument: str | None, kind: str) -> Dataset:
        if not argument:
            raise UserError('data "hf" needs a data set: use data=hf:FOLDER, or data=hf:ORG/NAME on the hub')
        name, options = _parse(argument)
        if importlib.util.find_spec("datasets") is None:
            raise UserError('data "hf" needs the package datasets: pip install "everclip[hf]"')
        splits = open_splits(name, options.config)
        chosen = {split: splits[split] for split in _chosen(name, list(splits), options)}
        if sum(map(len, chosen.values())) > MOST_IMAGES:
            raise UserError(f"hf:{name} has more than {MOST_IMAGES:,} images: choose a smaller split")
        folder = Path(name) if Path(name).is_dir() else None
        images = {split: columns.encoded_images(name, data, options.image) for split, data in chosen.items()}
        store = ArrowStore(name, images, folder, [] if folder else caches())
        links = tuple(caches())  # what the hub's client keeps are links into its cache
        is_test = [place > 0 for place, data in enumerate(chosen.values()) for _ in range(len(data))]
        tested = is_test if len(chosen) > 1 else None
        features = next(iter(chosen.values())).features
        if captions := _caption_column(name, features, options):
            rows = _pairs(name, chosen, captions, options, tested)
            return pairs.dataset(f"hf:{argument}", f"hf:{name}", store, rows)
        parts = {split: _part(name, split, data, options, kind) for split, data in chosen.items()}
        placed = [split for split, (_, domains, _) in parts.items() if domains is not None]
        if placed and len(placed) < len(parts):
            raise UserError(
                f'only the split "{placed[0]}" of hf:{name} has a column "domain": add or rename it'
            )
        labels, domains, classes = zip(*parts.values(), strict=True)
        rows = Rows([*chain(*labels)], tested, [*chain(*domains)] if placed else None, classes[0])
        hint = f"give their column, hf:{name}#domain=COLUMN"
        found = dataset(Origin(f"hf:{argument}", f"hf:{name}", kind, hint, folder, links), store, rows)
        timed = _timed(features)
        if kind != "time" and (kind != TASKS or not (options.time or timed)):
            return found
        return replace(found, times=numbered(_texts(name, chosen, "time", options.time, timed), f"hf:{name}"))


def _timed(features: datasets.Features) -> list[str]:
    """Return the columns that have the name of a column of times."""
    return [column for column in features if column.lower() in TIME]


def _texts(
    name: str, chosen: Splits, what: str, column: str | None, candidates: Sequence[str] = ()
) -> list[str]:
    """Return a column of all splits as texts. Raises UserError as ``find_column`` and ``cells``."""
    found: list[str] = []
    for split, data in chosen.items():
        place = find_column(name, what, column, data.features, candidates)
        found += columns.cells(name, split, data, place, what == "time")
    return found


def _pairs(
    name: str, chosen: Splits, captions: str, options: _Options, tested: list[bool] | None
) -> pairs.Pairs:
    """Return the splits as image-text pairs. Raises UserError where a column is missing, or a row has no caption."""
    said, first = list[list[str]](), next(iter(chosen.values())).features
    kept: dict[str, list[str]] = {}
    for what, given, names in (
        ("task", options.task or options.domain, ("task", "domain")),
        ("group", options.group, ("group",)),
    ):
        column = given or next((one for one in names if one in first), None)
        if column is not None:
            kept[what] = _texts(name, chosen, what, column)
    for split, data in chosen.items():
        column = find_column(name, "caption", captions, data.features, [])
        for row, value in enumerate(data[column][:]):
            texts = value if isinstance(value, list) else [] if value is None else [value]
            said.append(checked(f'row {row} of the split "{split}" of hf:{name}', texts))
    times, timed = None, _timed(first)
    if options.time or timed:
        times = numbered(_texts(name, chosen, "time", options.time, timed), f"hf:{name}")
    return pairs.Pairs(said, tested, kept.get("group"), kept.get("task"), times)


def _caption_column(name: str, features: datasets.Features, options: _Options) -> str | None:
    """Return the column of captions: the one asked for, else, if no column has labels, the one with such a name."""
    if options.caption is not None:
        return options.caption
    if options.label is not None or columns.label_columns(features, options.domain or "domain"):
        return None
    texts = [column for column in features if columns.holds_texts(features[column])]
    found = [column for column in texts if column.lower() in CAPTIONS]
    return find_column(name, "caption", None, features, found) if found else None


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


def _part(
    name: str, split: str, data: datasets.Dataset, options: _Options, kind: str
) -> tuple[list[str], list[str] | None, list[str]]:
    """Return the class and the domain of each image of a split, and the order of its classes.

    Raises UserError where a column cannot be identified, or a row has no label.
    """
    features = data.features
    given, names = options.domain, ("domain",)
    if kind == TASKS:
        given, names = options.task or options.domain, ("task", "domain")
    domain = given or next((one for one in names if columns.is_text(one, features)), None)
    if domain is not None:
        find_column(name, "domain", domain, features, [])
    label = find_column(name, "label", options.label, features, columns.label_columns(features, domain))
    domains = None if domain is None else columns.cells(name, split, data, domain)
    return columns.cells(name, split, data, label), domains, columns.class_names(features, label)
