"""Folders of the package `datasets` that tests write themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everclip import data
from tests.tars import encoded

datasets: Any = pytest.importorskip("datasets", reason='datasets is in the extra: pip install "everclip[hf]"')

NAMES = ["white", "red", "green", "blue"]
"""In an order that no sorting makes."""


def table(count: int = 6, names: list[str] = NAMES, start: int = 0, **other: Any) -> Any:
    """A split of ``count`` pictures of each class, by turns, as encoded images with a ClassLabel."""
    labels = [number % len(names) for number in range(count * len(names))]
    pictures = [
        {"bytes": encoded(names[label], start + row, "png"), "path": None} for row, label in enumerate(labels)
    ]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    columns = {"image": pictures, "label": labels}
    for column, values in other.items():
        columns[column] = [values[row % len(values)] for row in range(len(labels))]
        kinds[column] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def saved(root: Path, **splits: Any) -> Path:
    """A folder as ``DatasetDict.save_to_disk`` writes it."""
    datasets.DatasetDict(splits).save_to_disk(root)
    return root


def parquet(root: Path, files: int = 1, **splits: Any) -> Path:
    """A folder as ``push_to_hub`` writes it: ``data/SPLIT-00000-of-00002.parquet``."""
    (root / "data").mkdir(parents=True)
    for name, split in splits.items():
        for number in range(files):
            part = split.shard(files, number, contiguous=True)
            part.to_parquet(root / "data" / f"{name}-{number:05}-of-{files:05}.parquet")
    return root


def load(spec: object, kind: str = "class-incremental") -> data.Dataset:
    return data.load(f"hf:{spec}", kind)


def counts(found: data.Dataset) -> tuple[list[int], list[int]]:
    classes = len(found.class_names)
    return found.train.counts(classes).tolist(), found.test.counts(classes).tolist()


def cast(split: Any, column: str, kind: str, value: Callable[[str], object]) -> Any:
    """The split with the column ``label`` as ``column``, of values made of its names."""
    names = [value(NAMES[label]) for label in split["label"]]
    return split.remove_columns("label").add_column(column, names, feature=datasets.Value(kind))
