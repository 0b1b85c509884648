"""Configs, results and sweeps of others: one bad value loses that run alone, or nothing, and is named in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everclip import plots
from everclip.cli.app import main
from everclip.compare.comparable import without_memory
from everclip.errors import UserError
from everclip.report.collect import collect
from everclip.runs.find import not_begun
from everclip.runs.finished import natural, read
from everclip.sweep.folder import Folder
from tests.compare.folders import run_folder
from tests.report.synthetic import write_run

BAD: list[tuple[str, Any]] = [
    ("seed", [1]),
    ("seed", -1),
    ("tuned_on", 5),
    ("method.name", 5),
    ("memory.budget", [200]),
    ("memory.budget", "many"),
    ("memory.per_class", "x" * 100_000),  # times so many classes, it would take all memory
    ("memory.per_class", [0] * 1000),
    ("memory.per_class", 0.5),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key}-{n}" for n, (key, _) in enumerate(BAD)])
def test_a_config_that_cannot_be_leaves_out_its_run(
    tmp_path: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "bad", 0.5, config={key: value})
    write_run(tmp_path / "good", tasks=2, per_task=3, steps=4)
    found = collect([tmp_path])
    assert [run.name for run in found.runs] == ["good"]
    assert found.to_json()["settings"]
    (line,) = found.skipped
    name = "method" if key == "method.name" else key
    assert line.startswith(f"{tmp_path / 'bad' / 'config.toml'} cannot be read (its {name} is ")
    assert line.endswith(", which it cannot be): restore it, or leave the run out")
    assert main(["compare", str(tmp_path / "bad")]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("word", ["none", "auto"])
def test_no_memory_per_class_is_no_text_to_repeat(tmp_path: Path, word: str) -> None:
    write_run(tmp_path / "a", tasks=2, per_task=3, steps=4)
    (tmp_path / "a" / "results.json").unlink()
    config = (tmp_path / "a" / "config.toml").read_text()
    config = config.replace("[memory]\n", f'[memory]\nper_class = "{word}"\n')
    (tmp_path / "a" / "config.toml").write_text(config)
    (setting,) = collect([tmp_path / "a"]).settings
    assert [group.memory for group in setting.every] == [200]


def test_names_of_many_digits_are_sorted(tmp_path: Path) -> None:
    names = ["s2", "s10", "s010", "s" + "1" * 5000, "s" + "9" * 5000, "t"]
    found = sorted(names, key=lambda name: (natural(name), name))
    assert found == ["s2", "s010", "s10", *names[3:]]
    assert natural("s010") == natural("s10")
    for method in ("1" * 5000, "2" * 5000):
        write_run(tmp_path / method[0], tasks=2, per_task=3, steps=4, method=method)
    (setting,) = collect([tmp_path]).settings
    assert [group.method[0] for group in setting.every] == ["1", "2"]
    assert main(["compare", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "run", ["\0", "\ud800", "x" * 5000, "loop", "../other/x", "/x", "..", ".", 5, [], None]
)
def test_a_sweep_names_runs_in_its_own_folder_alone(tmp_path: Path, run: Any) -> None:
    (tmp_path / "other" / "logs").mkdir(parents=True)
    (tmp_path / "other" / "logs" / "x.log").write_text("error: private\n")
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "loop").symlink_to("loop")
    cells = [{"run": run, "seed": "0"}, {"run": "gcl_s1", "seed": "1"}]
    (folder / "sweep.json").write_text(json.dumps({"schema": 1, "cells": cells}))
    found = not_begun([folder], [])
    assert found[-1][0] == "gcl_s1 (seed 1)"
    assert len(found) == 1 + (run in ("\0", "\ud800", "x" * 5000, "loop")), "a name, however odd"
    assert "private" not in str(found)
    assert "\0" not in str(found)


@pytest.mark.parametrize("failed", [5, [], "x", None, {"key": 5}, {"key": ["x"]}])
def test_failures_that_are_no_texts_are_none(tmp_path: Path, failed: Any) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "failed": failed}))
    folder = Folder(tmp_path)
    folder.scan([])
    assert folder.failures == {}


def test_a_run_without_a_bad_value_is_read(tmp_path: Path) -> None:
    """What a config may hold: a budget of all, and a record of a search."""
    run_folder(tmp_path / "a", 0.5, config={"memory.budget": "all", "tuned_on": "emoji", "seed": 2**32 - 1})
    assert read(tmp_path / "a").value("memory.budget") == "all"
    (tmp_path / "a" / "config.toml").write_text("seed = 1\n[memory]\nbudget = false\n")
    with pytest.raises(UserError, match=r"its memory\.budget is false, which it cannot be"):
        read(tmp_path / "a")


def test_a_chart_of_a_run_imports_no_code_that_its_config_names(tmp_path: Path) -> None:
    """Also in Python, where what the user writes is imported."""
    run = tmp_path / "run"
    write_run(run, tasks=2, per_task=3, steps=4, method=str(tmp_path / "evil.py"))
    told = tmp_path / "told"
    (tmp_path / "evil.py").write_text(f"open({str(told)!r}, 'w')\n")
    plots.accuracy_against_memory(str(run))
    assert without_memory(read(run)) is False
    assert not told.exists()


def test_numbers_that_are_none_are_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"source": {"z": float("nan"), "several": [1.5, float("-inf")]}}
    for name in ("one", "two"):
        run_folder(tmp_path / name, 0.5, seed=int(name == "two"), config=odd)
    assert read(tmp_path / "one").config["source.several"] == [1.5, "-inf"]
    assert main(["compare", str(tmp_path), "--json"]) == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_grid_of_any_number_leaves_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = (
        f"emoji, tasks 1-5, 0.3 of their training images, memory 1, seed 0; a 1: 0.1000, {'9' * 400}: 0.9000"
    )
    run_folder(tmp_path / "run", 0.5, config={"tuned_on": tuned})
    assert main(["compare", str(tmp_path / "run")]) == 0
    assert "gcl" in capsys.readouterr().out
