"""everclip report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from everclip.cli import app
from tests.report.page import Page
from tests.report.synthetic import write_run

SMALL: dict[str, Any] = {"tasks": 2, "per_task": 3, "steps": 6}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two seeds, which is the current one's ``runs``."""
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"s{seed}", seed=seed, **SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_one_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["report", "runs/s0", "-o", "deep/x.html"]) == 0
    assert capsys.readouterr().out == "The run is finished.\nreport: deep/x.html\n"
    assert "points better than zero-shot" in Page(Path("deep/x.html").read_text()).text


@pytest.mark.slow
def test_many_runs_and_what_is_none(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["report", "runs", "nothing", "--figures", "f"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "All 2 runs are finished.\nreport: report.html\n"
    assert captured.err.startswith('left out: "nothing" does not exist')
    text = Page(Path("report.html").read_text()).text
    assert '"nothing" does not exist' in text
    assert (runs.parent / "f" / "memory-last.pdf").read_bytes().startswith(b"%PDF")
    assert (runs.parent / "f" / "memory-last.png").read_bytes().startswith(b"\x89PNG")


def test_json_has_the_numbers_of_the_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "s1" / "results.json").unlink()
    last = json.loads((runs / "s0" / "results.json").read_text())["last"]
    assert app.main(["report", "runs/s*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page"] == "report.html"
    assert Path("report.html").exists()
    assert [(run["path"], run["state"]) for run in found["runs"]] == [
        ("runs/s0", "finished"),
        ("runs/s1", "stopped"),
    ]
    (setting,) = found["settings"]
    assert setting["facts"]["data"] == "imagefolder:photos"
    (group,) = setting["groups"]
    assert (group["method"], group["memory"], group["seeds"]) == ("gdro", 200, [0])
    assert group["last"] == {"mean": last, "low": None, "high": None, "n": 1}
    assert group["runs"] == ["runs/s0", "runs/s1"]


@pytest.mark.slow
def test_mistakes(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs.parent / "file").write_text("")
    os.mkfifo(runs.parent / "pipe")
    for arguments, message in (
        ([], "no run to report: give at least one run directory"),
        (["nothing"], '"nothing" does not exist: give a run directory'),
        (["file"], '"file" is not a run directory'),
        (["runs", "-o", "file/x.html"], "cannot be written"),
        (["runs", "-o", "runs"], "runs cannot be written (it is a folder): give the name of a file"),
        (["runs", "-o", "."], ". cannot be written (it is a folder): give the name of a file"),
        (["runs", "-o", "pipe"], "pipe cannot be written (it is a pipe): give the name of a file"),
        (["runs", "--figures", "file"], "cannot be written"),
    ):
        assert app.main(["report", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1


def test_an_old_page_outlives_a_mistake(runs: Path) -> None:
    Path("report.html").write_text("old")
    assert app.main(["report", "nothing"]) == 2
    assert Path("report.html").read_text() == "old"
    assert app.main(["report", "runs/s0"]) == 0
    assert not [name for name in os.listdir(".") if name.startswith(".report")]


def test_a_link_to_a_page_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site").mkdir()
    Path("site/index.html").symlink_to("../v1.html")
    for _ in ("a new page", "the page again"):
        assert app.main(["report", "runs/s0", "-o", "site/index.html"]) == 0
        assert capsys.readouterr().out.endswith("\nreport: site/index.html\n")
        assert os.readlink("site/index.html") == "../v1.html"
        assert Path("v1.html").read_text().startswith("<!")
    assert os.listdir("site") == ["index.html"]
