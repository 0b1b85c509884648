"""What an earlier version left is used by this one: a stopped run, a finished one, a model folder and a version.

``kept/before.tar.xz`` was written by everclip 0.1.0 before modules moved into packages and before there were two
generations of defaults: a CLIP under 2 MB (``clip``), its pictures, ``stopped`` (killed within its third task),
``full`` (the same run, not stopped; without checkpoints), ``model`` (exported) and ``version`` (of ``update``), and
what the last two answered then.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from everclip.cli.app import main

ARCHIVE = Path(__file__).parents[1] / "kept" / "before.tar.xz"


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with what was kept."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def test_a_stopped_run_goes_on_to_the_same_result() -> None:
    assert main(["resume", "stopped"]) == 0
    found, then = (json.loads(Path(run, "results.json").read_text()) for run in ("stopped", "full"))
    assert found["matrix"] == then["matrix"]
    for key in ("accuracy_after_stage", "forgetting", "zero_shot", "memory_bytes", "optimizer_steps"):
        assert found[key] == pytest.approx(then[key]), key
    with np.load("stopped/predictions.npz") as new, np.load("full/predictions.npz") as old:
        assert set(old) <= set(new)
        for key in old:
            if old[key].dtype.kind == "f":
                assert new[key] == pytest.approx(old[key], abs=1e-3), key
            else:
                assert (new[key] == old[key]).all(), key


@pytest.mark.slow
def test_runs_of_both_versions_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "stopped"]) == 0
    assert main(["compare", "full", "stopped", "--json"]) == 0
    assert main(["report", "full", "-o", "page.html"]) == 0
    assert Path("page.html").stat().st_size > 10_000


@pytest.mark.parametrize("model", ["model", "version"])
def test_a_model_answers_as_it_did(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", model, "photos/test/red/0.png", "--json", "--top", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    then = json.loads(Path(f"{model}.predicted.json").read_text())
    assert found["class"] == then["class"]
    assert [row["class"] for row in found["top"]] == [row["class"] for row in then["top"]]
    assert [row["probability"] for row in found["top"]] == pytest.approx(
        [row["probability"] for row in then["top"]], abs=1e-4
    )


def test_a_version_is_updated_and_rolled_back(capsys: pytest.CaptureFixture[str]) -> None:
    added = ["update", "version", "--add", "imagefolder:photos/train", "--test", "imagefolder:photos/test"]
    assert main([*added, "--max-drop", "100", "-o", "next"]) == 0
    assert json.loads(Path("next/update.json").read_text())["version"] == 2
    assert main(["rollback", "next"]) == 0
    capsys.readouterr()
    assert main(["predict", "next", "photos/test/red/0.png", "--json", "--top", "9"]) == 0
    top = json.loads(capsys.readouterr().out)["top"]
    assert {row["class"] for row in top} == {"red", "yellow"}
