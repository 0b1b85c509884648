"""Finished runs as data frames: per class, confusion and predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import everclip
from everclip.errors import UserError
from tests.compare.folders import run_folder

pandas: Any = pytest.importorskip("pandas", reason='pandas is in the extra: pip install "everclip[pandas]"')

CLASSES = ["b", "a", "c"]
LABELS = [1, 0, 2]


def told(folder: Path, seed: int = 0, **more: Any) -> Path:
    """A run that takes one of two images of "b" for "a", and has no image of "c"."""
    rows = [
        {"class": name, "task": task, "n": n, "zero_shot": value, "after_learning": value, "last": value}
        for name, task, n, value in (("b", 0, 2, 0.5), ("a", 0, 1, 1.0), ("c", 1, 0, None))
    ]
    run_folder(folder, 0.5, seed=seed, classes=CLASSES, class_labels=LABELS, per_class=rows)
    columns = {
        "id": np.array([7, 8, 9]),
        "label": np.array([1, 1, 0]),
        "top": np.array([[1, 0], [0, 1], [0, 2]]),
        "margin": np.array([0.5, 0.1, 0.3], dtype=np.float32),
    }
    np.savez(folder / "predictions.npz", **columns | more)
    return folder


def test_per_class_has_a_row_a_class_and_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        told(tmp_path / f"s{seed}", seed)
    table: Any = everclip.load_per_class(tmp_path)
    assert list(table.columns) == [
        *("path", "method", "memory_budget", "seed"),
        *("class", "task", "n", "zero_shot", "after_learning", "last"),
    ]
    assert len(table) == 6
    means: Any = table.groupby("class")["last"].mean()
    assert (means["a"], means["b"]) == (1.0, 0.5)
    assert np.isnan(means["c"])
    assert set(table["seed"]) == {0, 1}


def test_predictions_have_a_row_an_image(tmp_path: Path) -> None:
    told(tmp_path / "x", confidence=np.array([0.9, 0.6, 0.7], dtype=np.float32))
    table: Any = everclip.load_predictions(tmp_path / "x")
    assert list(table["id"]) == [7, 8, 9]
    assert list(table["class"]) == ["b", "b", "a"]
    assert list(table["predicted"]) == ["b", "a", "a"]
    assert list(table["right"]) == [True, False, True]
    assert list(table["confidence"]) == pytest.approx([0.9, 0.6, 0.7])
    told(tmp_path / "y", seed=1)
    both: Any = everclip.load_predictions([tmp_path / "x", tmp_path / "y"])
    assert both.groupby("seed")["right"].mean().tolist() == pytest.approx([2 / 3, 2 / 3])
    assert both["confidence"].isna().tolist() == [False] * 3 + [True] * 3


def test_confusion_counts_images_in_the_order_learned(tmp_path: Path) -> None:
    table: Any = everclip.load_confusion(told(tmp_path / "x"))
    assert list(table.index) == list(table.columns) == CLASSES
    assert table.to_numpy().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert table.loc["b", "a"] == 1


def unreadable(folder: Path) -> None:
    (folder / "predictions.npz").write_bytes(b"PK")


def no_labels(folder: Path, key: str = "class_labels") -> None:
    known = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({k: v for k, v in known.items() if k != key}))


def no_classes(folder: Path) -> None:
    no_labels(folder, "classes")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "predictions.npz").unlink(), "x has no predictions.npz: leave it out"),
        (unreadable, "predictions.npz cannot be read"),
        (no_labels, "x has no class_labels in its results.json"),
        (no_classes, "x has no class_labels in its results.json"),
        (lambda folder: (folder / "results.json").unlink(), "no finished run there"),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(told(tmp_path / "x"))
    for load in (everclip.load_predictions, everclip.load_confusion):
        with pytest.raises(UserError, match=message) as error:
            load(tmp_path / "x")
        assert "\n" not in str(error.value)


def test_one_run_is_asked_for_where_one_is_meant(tmp_path: Path) -> None:
    for name in "ab":
        told(tmp_path / name)
    with pytest.raises(UserError, match="has 2 runs: give one run directory"):
        everclip.load_confusion(tmp_path)


def test_without_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "pandas", None)
    for load in (everclip.load_per_class, everclip.load_predictions, everclip.load_confusion):
        with pytest.raises(
            UserError, match=r'a data frame needs the package pandas: pip install "everclip\[pandas\]"'
        ):
            load(tmp_path / "x")
