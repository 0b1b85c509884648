"""Runs that begin where another stood: the same end where nothing differs, and only the rest where something does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from everclip.cli.app import main
from everclip.errors import RunError, UserError
from everclip.report.build import build
from everclip.runs.run import Run
from everclip.training import fork as forking
from tests.running import configured, logged, run, run_for, timeless

KEEP = "checkpoint.keep=3"


@pytest.fixture
def words(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", "method=gdro"]


@pytest.fixture
def base(tmp_path: Path, words: list[str]) -> Path:
    run(tmp_path / "base" / "s0", *words, KEEP)
    return tmp_path / "base"


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "results.json").read_text())


def test_a_fork_of_the_same_settings_ends_as_its_source(tmp_path: Path, words: list[str], base: Path) -> None:
    """Bit for bit, whether or not it is stopped on the way, and though the source is gone by then."""
    fork = f"fork={base}@1"
    forked = run(tmp_path / "fork", *words, fork)
    assert forked["forked_from"] == {
        "run": str(base / "s0"),
        "stage": 1,
        "config": forked["forked_from"]["config"],
    }
    whole = read(base / "s0")
    assert whole["forked_from"] is None
    assert timeless(forked | {"forked_from": None}) == timeless(whole)
    assert logged(tmp_path / "fork") == logged(base / "s0")
    assert (tmp_path / "fork" / "environment.json").exists()
    page = build([tmp_path / "fork"], tmp_path / "page.html").read_text()
    assert f"forked from</th><td>{base / 's0'} after 1 task<" in page
    assert run_for(tmp_path / "stopped", 2, *words, fork) is None
    shutil.rmtree(base)
    again = run_for(tmp_path / "stopped", 1000, *words, fork)
    assert again is not None
    assert timeless(again) == timeless(forked)


def test_what_differs_acts_on_the_later_tasks_alone(tmp_path: Path, words: list[str], base: Path) -> None:
    other = run(
        tmp_path / "fork", *words, f"fork={base}@2", "train.lr=1e-2", "method.margin=0.9", "memory.budget=6"
    )
    whole = read(base / "s0")
    assert other["accuracy_after_stage"][:2] == whole["accuracy_after_stage"][:2]
    assert other["matrix"][:2] == whole["matrix"][:2]
    mine, theirs = logged(tmp_path / "fork"), logged(base / "s0")
    end = next(n for n, line in enumerate(theirs) if line.get("stage") == 1 and line["event"] == "stage") + 1
    assert mine[:end] == theirs[:end]
    assert mine[end:] != theirs[end:]
    assert mine[-2]["memory"]["count"] <= 6 < theirs[-2]["memory"]["count"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=1", "seed is 0 there and 1 here"),
        ("method=gcl", "method.name is gdro there and gcl here"),
        ("scenario.tasks=2", "scenario.tasks is "),
        ("data=emoji", "data is "),
        ("fork=nowhere@1", "there is none"),
        ("fork={base}@3", "there are 3 tasks: fork after fewer"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, words: list[str], base: Path, word: str, message: str
) -> None:
    words = [*words, f"fork={base}@1"]
    word = word.format(base=base)
    words = [kept for kept in words if kept.partition("=")[0] != word.partition("=")[0]]
    with pytest.raises(UserError, match=message):
        run(tmp_path / "fork", *words, word)
    assert not (tmp_path / "fork").exists()


def test_a_fork_reads_the_tower_as_its_source_did(tmp_path: Path, words: list[str]) -> None:
    """Sums of other layers may be as wide: those that generation 3 reads of a transformer are."""
    words = [*words[:2], "method=multilayer_lda"]
    run(tmp_path / "base", *words, KEEP, "defaults=2")
    fork = [*words, f"fork={tmp_path / 'base'}@1"]
    with pytest.raises(
        UserError, match=r"multilayer_lda there reads other parts of the tower: .* defaults=2$"
    ):
        run(tmp_path / "fork", *fork)
    assert not (tmp_path / "fork").exists()
    made = run(tmp_path / "fork", *fork, "defaults=2", "method.shrinkage=1")
    assert made["matrix"][0] == read(tmp_path / "base")["matrix"][0]


def test_checkpoints_that_are_gone_damaged_or_ambiguous(tmp_path: Path, words: list[str], base: Path) -> None:
    config = configured(*words, f"fork={base}@1")
    checkpoint = forking.source(config).folder
    (checkpoint / "state.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="stage-000 is damaged"):
        run(tmp_path / "fork", *words, f"fork={base}@1")
    shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match=r"after 2, 3 tasks: .*checkpoint.keep=3"):
        forking.source(config)
    shutil.copytree(base / "s0", base / "s0-again")
    with pytest.raises(UserError, match=r"2 runs fit, such as .*s0 and .*s0-again: name one of them"):
        forking.source(config)


def test_a_fork_whose_checkpoints_are_all_damaged_never_starts_again(
    tmp_path: Path, words: list[str], base: Path
) -> None:
    out = tmp_path / "fork"
    assert run_for(out, 3, *words, f"fork={base}@1") is None
    for state in (out / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"x")
    steps = (out / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(RunError, match=r"no checkpoint in .* can be used: remove that folder"):
            run(out, *words, f"fork={base}@1")
        assert (out / "metrics.jsonl").read_bytes() == steps
        assert [*(out / "checkpoints").glob("*.damaged")]
    shutil.rmtree(out / "checkpoints")
    assert run(out, *words, f"fork={base}@1")["forked_from"]


@pytest.mark.slow
def test_a_sweep_of_forks(
    tmp_path: Path, words: list[str], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(base / "s1", *words, KEEP, "seed=1")
    capsys.readouterr()
    config = Run.read_config(base / "s0")
    small = [f"scenario.tasks={config.scenario.tasks}", "train.epochs=1", "train.batch_size=8", "device=cpu"]
    out = tmp_path / "s"
    sweep = ["sweep", *words, *small, "memory.budget=12", "train.lr=1e-4,1e-3", f"out={out}"]
    sweep += ["--from", str(base), "--from-stage", "1"]
    assert main([*sweep, "seed=0..2", "--dry-run"]) == 2
    assert "seed is 0 there and 2 here; seed is 1 there" in capsys.readouterr().err
    assert main([*sweep, "seed=0..1"]) == 0
    capsys.readouterr()
    assert main([*sweep, "seed=0..1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["cells"]) == 4
    for cell in shown["cells"]:
        found = read(Path(cell["run"]))
        assert found["forked_from"]["run"] == str(base / f"s{cell['values']['seed']}")
    assert main([*sweep, "--tune", "lr=1e-5,1e-4", "seed=0"]) == 2
    assert "--tune trains from the first task" in capsys.readouterr().err
    assert main(["sweep", *words, "--from", str(base)]) == 2
    assert "--from RUNS and --from-stage K go together" in capsys.readouterr().err
