"""Finished runs as dictionaries and tables."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import everclip
from everclip.errors import UserError
from everclip.runs import finished
from tests.compare.folders import answers, run_folder
from tests.running import run


def test_a_row_a_run_with_its_numbers_and_settings(tmp_path: Path, toy: str, photos: str) -> None:
    results = run(tmp_path / "x", f"data={photos}", f"model={toy}", "method=gdro", "method.margin=0.3")
    (row,) = everclip.load_runs(tmp_path / "x")
    assert row["path"] == str(tmp_path / "x")
    assert {key: row[key] for key in ("last", "average", "method", "seed", "memory_budget")} == {
        key: results[key] for key in ("last", "average", "method", "seed", "memory_budget")
    }
    assert (row["memory.budget"], row["train.batch_size"], row["method.margin"]) == (12, 8, 0.3)
    assert row["forgetting"] == results["forgetting"]
    for key in (
        "accuracy_after_stage",
        "matrix",
        "classes",
        "per_class",
        "test_counts",
        "templates",
        "tasks",
    ):
        assert row[key] == results[key]
    assert results.keys() <= row.keys()
    again = finished.read(tmp_path / "x")
    told = finished.right_both(again, again)
    assert told is not None
    assert told[0].mean() == told[1].mean() == pytest.approx(results["last"])


def test_folders_patterns_and_what_is_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in (10, 2):
        run_folder(tmp_path / "s" / f"gcl-s{seed}", 0.5, seed=seed)
    (tmp_path / "s" / "half").mkdir()
    (tmp_path / "s" / "half" / "config.toml").write_text("")
    (tmp_path / "s" / "sweep.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING, "everclip"):
        found = everclip.load_runs(
            [tmp_path / "s", tmp_path / "s" / "gcl-s2", tmp_path / "empty", tmp_path / "x"]
        )
    assert [row["seed"] for row in found] == [2, 10]
    assert f"not finished, left out: 1 of 3 runs, {tmp_path / 's' / 'half'}" in caplog.text
    assert f"not a run, left out: {tmp_path / 'empty'}\n" in caplog.text
    assert f"not found, left out: {tmp_path / 'x'}" in caplog.text
    caplog.clear()
    found = everclip.load_runs(f"{tmp_path}/s/*")
    assert [Path(row["path"]).name for row in found] == ["gcl-s2", "gcl-s10"]
    assert f"not finished, left out: 1 of 3 runs, {tmp_path / 's' / 'half'}" in caplog.text
    assert "no run" not in caplog.text  # sweep.json is the sweep's own
    caplog.clear()
    assert everclip.load_runs(f"{tmp_path}/nothing*") == []
    assert "matches nothing" in caplog.text


def test_results_alone_are_a_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "x", 0.5, budget=500)
    (folder / "config.toml").unlink()
    (row,) = everclip.load_runs(folder)
    assert "memory.budget" not in row
    assert finished.read(folder).value("memory.budget") == 500


def test_a_memory_per_class_and_a_budget_are_read_as_each_other(tmp_path: Path) -> None:
    each = run_folder(
        tmp_path / "each", 0.5, budget=50, config={"memory.budget": "none", "memory.per_class": 5}
    )
    none = run_folder(tmp_path / "none", 0.5, budget=0)
    some = run_folder(tmp_path / "some", 0.5, budget=50)
    found = [finished.read(folder) for folder in (each, none, some)]
    assert [run.value("memory.budget") for run in found] == [50, 0, 50]
    assert [run.value("memory.per_class") for run in found] == [5, 0, None]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{", "results.json cannot be read"),
        ("results.json", "[]", "it is not a JSON object"),
        ("results.json", '{"accuracy": 1}', 'it has no "schema"'),
        ("config.toml", "seed = ", "config.toml cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = run_folder(tmp_path / "x", 0.5)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        everclip.load_runs(folder)
    assert "\n" not in str(error.value)


def test_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "a", 0.5, seed=0)
    run_folder(tmp_path / "b", 0.7, seed=1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(UserError, match=r'needs the package pandas: pip install "everclip\[pandas\]"'):
            everclip.load_runs(tmp_path, as_pandas=True)
    pytest.importorskip("pandas")
    table = everclip.load_runs(tmp_path, as_pandas=True)
    assert list(table["last"]) == [0.5, 0.7]
    assert list(table["memory.budget"]) == [200, 200]
    assert list(table["test_counts"]) == [[20, 30], [20, 30]]


def test_answers_on_other_images_are_not_paired(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, 0.5) for name in "abc"]
    answers(folders[0], 5, 10)
    answers(folders[1], 5, 11)
    first, second, third = map(finished.read, folders)
    assert finished.right_both(first, second) is None
    assert finished.right_both(first, third) is None


def test_the_public_names_are_found_late() -> None:
    code = (
        "import sys, everclip; before = 'everclip.runs.tables' in sys.modules; everclip.load_runs;"
        " everclip.load_per_class; print(before, *(name in sys.modules for name in ('torch', 'pandas')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
    with pytest.raises(AttributeError, match="has no attribute"):
        everclip.nothing  # noqa: B018
