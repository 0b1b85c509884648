"""data=hf:FOLDER with a column of captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.complaints import complaint
from tests.data.captioned import load, said
from tests.data.hf_sets import datasets, saved
from tests.tars import encoded


def table(start: int = 0, label: bool = False, **columns: Any) -> Any:
    """Eight pictures with columns of any type."""
    pictures = [{"bytes": encoded("red", start + n, "png"), "path": None} for n in range(8)]
    kinds = {"image": datasets.Image()} | ({"label": datasets.ClassLabel(names=["a", "b"])} if label else {})
    found = datasets.Dataset.from_dict(
        {"image": pictures, **columns, **({"label": [0, 1] * 4} if label else {})}
    )
    return found.cast(datasets.Features({**found.features, **kinds}))


def test_texts_and_lists_of_texts(tmp_path: Path) -> None:
    texts = [f"wall {n}" for n in range(8)]
    found = load(f"hf:{saved(tmp_path / 'one', train=table(caption=texts, task=['x', 'y'] * 4))}")
    assert sorted(said(found).values()) == [[text] for text in texts]
    assert found.domain_names == ("x", "y")
    lists = [[f"wall {n}", f"壁 {n}"] for n in range(8)]
    parts = {
        "train": table(sentences=lists, time=[-n for n in range(8)]),
        "test": table(8, sentences=lists, time=[9] * 8),
    }
    found = load(f"hf:{saved(tmp_path / 'two', **parts)}#caption=sentences")
    assert sorted(said(found).values()) == sorted([*lists, *lists])
    assert found.times is not None
    assert sorted(found.times.tolist()) == [-7, -6, -5, -4, -3, -2, -1, 0] + [9] * 8
    assert not found.held_out


@pytest.mark.parametrize("column", ["date", "Timestamp", "TIME"])
def test_times_are_known_by_what_their_column_is_called(tmp_path: Path, column: str) -> None:
    """As those of a csv list, and of images with labels, are."""
    days: dict[str, Any] = {column: [f"2024-05-{8 - n:02d}" for n in range(8)]}
    found = load(f"hf:{saved(tmp_path / 'one', train=table(caption=['wall'] * 8, **days))}")
    assert found.times is not None
    assert np.diff(found.times).tolist() == [-86400.0] * 7
    days["when"] = [*reversed(days[column])]
    found = load(f"hf:{saved(tmp_path / 'two', train=table(caption=['wall'] * 8, **days))}#time=when")
    assert found.times is not None
    assert np.diff(found.times).tolist() == [86400.0] * 7


def test_labels_go_before_captions_unless_these_are_asked_for(tmp_path: Path) -> None:
    spec = f"hf:{saved(tmp_path / 'one', train=table(label=True, caption=['wall'] * 8))}"
    assert not load(spec).captioned
    assert load(f"{spec}#caption=caption").captioned


@pytest.mark.parametrize(
    ("columns", "option", "words"),
    [
        ({"caption": ["a"] * 7 + [None]}, "", 'row 7 of the split "train" of hf:'),
        ({"caption": ["a"] * 7 + [""]}, "", "has an empty caption: write one"),
        ({"caption": [["a"]] * 7 + [[]]}, "", "has no caption: write one"),
        ({"caption": ["a"] * 8, "text": ["a"] * 8}, "", "has several caption columns"),
        ({"caption": [1.5] * 8}, "#caption=caption", "holds no texts: choose another caption"),
        ({"caption": ["a"] * 8}, "#caption=sentence", 'has no column "sentence"'),
        ({"caption": ["a"] * 8, "time": ["soon"] * 8}, "", 'has the time "soon": '),
        ({"caption": ["a"] * 8, "time": [1] * 8, "date": [1] * 8}, "", "#time=COLUMN"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, columns: dict[str, Any], option: str, words: str) -> None:
    assert words in complaint(load, f"hf:{saved(tmp_path / 'one', train=table(**columns))}{option}")
