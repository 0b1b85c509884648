"""Images that a model is tested on and has learned are counted and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everclip import data
from everclip.cli.app import main
from everclip.errors import UserError
from everclip.inference import learned
from everclip.inference.learned import repeated
from everclip.runs.run import IMAGES
from tests.learned import coloured, held_out
from tests.pictures import COLOURS, image_folder
from tests.running import run
from tests.versions import COLD, WARM, begin, colours, first, updated, written


@pytest.fixture
def learner(toy: str, tmp_path: Path) -> Path:
    """A run of six colours in three tasks, on the folder beside it."""
    root = image_folder(tmp_path / "photos", {"train": 4})
    coloured(root / "test", COLOURS, 2, seed=7)
    run(tmp_path / "run", f"data=imagefolder:{root}", f"model={toy}", "method=gdro")
    return tmp_path / "run"


@pytest.fixture
def mixed(tmp_path: Path, learner: Path) -> str:
    """New pictures of the six colours, and three that the run has learned, under other names."""
    spec = held_out(tmp_path / "mixed", 3)
    for number in range(3):
        shutil.copy(tmp_path / f"photos/train/red/{number}.png", tmp_path / f"mixed/red/old{number}.png")
    return spec


def test_evaluation_of_a_run(
    learner: Path, mixed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(learner), "--data", mixed, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["duplicates"] == 3
    assert told.err == (
        f"warning: 3 of the 21 images of {mixed} were learned by {learner}, which inflates its accuracy\n"
    )
    assert main(["evaluate", str(learner), "--data", held_out(tmp_path / "new"), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["duplicates"] == 0
    assert told.err == ""
    shutil.copy(tmp_path / "photos/train/red/0.png", tmp_path / "photos/test/red/0.png")
    assert main(["evaluate", str(learner), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["duplicates"] == 1
    (learner / IMAGES).unlink()
    assert main(["evaluate", str(learner), "--data", mixed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["duplicates"] is None


def test_only_tasks_that_were_learned_count(learner: Path, mixed: str) -> None:
    images = data.load(mixed).whole()
    assert repeated(str(learner), images, "mixed") == 3
    for stage in ("stage-001", "stage-002"):
        shutil.rmtree(learner / "checkpoints" / stage, ignore_errors=True)
    known = learned.of(str(learner))
    assert known is not None
    assert len(known.ids) == 0  # but for the checkpoint before the first task none is left


def test_calibration_and_merging(
    learner: Path, mixed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"3 of the 21 images of {mixed} were learned by {learner}, which inflates its accuracy"
    main(["predict", str(learner), "--calibrate", mixed])
    assert line in capsys.readouterr().err
    words = ["merge", str(learner), "--with", "zero-shot", "--validate", mixed, "--alpha", "0.5"]
    assert main([*words, "-o", str(tmp_path / "merged")]) == 0
    assert line in capsys.readouterr().err


def test_a_version(toy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Exemplars, check images, and those of which it has sums alone."""
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    updated(state, colours(tmp_path / "cold", COLD))
    warm = data.load(f"imagefolder:{tmp_path / 'warm'}").whole()
    assert repeated(str(tmp_path / "v1"), warm, "warm") == 12
    assert "12 of the 12 images of warm were learned by" in caplog.text
    other = data.load(f"imagefolder:{tmp_path / 'warm-test'}").whole()
    assert repeated(str(tmp_path / "v1"), other, "other") == 0
    assert repeated(toy, warm, "warm") is None
    (tmp_path / "v1" / "images.json").write_text("[]")
    with pytest.raises(UserError, match=r"v1 is damaged \(images.json or"):
        repeated(str(tmp_path / "v1"), other, "other")


def test_the_test_of_an_update(learner: Path, mixed: str, tmp_path: Path, toy: str) -> None:
    """What a run has learned is left out of it, also where it is too much to be learned again."""
    state = begin(str(learner), memory=coloured(tmp_path / "few", WARM, 2, 11))
    test = data.load(mixed)
    purple = colours(tmp_path / "purple", {"purple": (150, 30, 160)})
    verdict = updated(state, purple, test).verdict
    assert verdict["test"]["duplicates"] == 3
    assert verdict["test"]["images"] == 18
