"""The loop: the order in which it asks a method, and what it has done when a task ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everclip.methods.finetune import Finetune
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training import loop
from tests.running import configured

HOOKS = ("grow", "begin_task", "phases", "begin_phase", "encode", "loss", "penalty", "after_step", "end_task")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the loop calls of the method, in order."""
    calls: list[str] = []

    def noted(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Finetune, *given: Any) -> Any:
            calls.append(name)
            return hook(self, *given)

        return call

    for name in HOOKS:
        monkeypatch.setattr(Finetune, name, noted(name, getattr(Finetune, name)))
    return calls


def trained(toy: str, photos: str, out: Path, *words: str) -> tuple[Run, dict[str, Any]]:
    given = ("method=finetune", "scenario.tasks=3", f"out={out}", *words)
    with Run.open(configured(f"data={photos}", f"model={toy}", *given)) as run:
        return run, loop.train(run, Progress())


def test_the_hooks_of_a_task_come_in_this_order(
    toy: str, photos: str, tmp_path: Path, asked: list[str]
) -> None:
    trained(toy, photos, tmp_path / "run", "train.epochs=2", "memory.budget=0")
    steps = ["encode", "loss", "penalty", "after_step"] * 2
    task = ["grow", "begin_task", "phases", "begin_phase", *steps, "end_task"]
    kept = [name for name in asked if name != "phases"]
    assert kept == [name for name in task if name != "phases"] * 3
    assert asked.count("phases") >= 3


def test_a_finished_task_has_a_checkpoint_a_line_and_exemplars(toy: str, photos: str, tmp_path: Path) -> None:
    run, results = trained(toy, photos, tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    stages = [line for line in lines if line["event"] == "stage"]
    assert len(stages) == len(results["accuracy_after_stage"]) == 3
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["stage-001", "stage-002"]
    assert results["optimizer_steps"] == 1 + 2 + 3  # 8 new images, and 0, 8, 12 exemplars
    assert results["memory_bytes"] > 0
    assert lines[-1]["event"] == "end"


def test_what_is_finished_is_not_trained_again(
    toy: str, photos: str, tmp_path: Path, asked: list[str]
) -> None:
    _, first = trained(toy, photos, tmp_path / "run")
    asked.clear()
    with Run.open(Run.read_config(tmp_path / "run")) as run:
        assert run.finished
        again = loop.train(run, Progress())
    assert not {"loss", "begin_task", "end_task"} & {*asked}
    assert again["accuracy_after_stage"] == first["accuracy_after_stage"]
