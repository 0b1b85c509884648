"""metrics.jsonl of any size and content: what can be used of it, within bounds."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from everclip.report.build import build
from everclip.runs import log
from everclip.runs.log import Log
from everclip.runs.read import read_run
from tests.report.synthetic import write_run


def step(at: int, **more: Any) -> str:
    return json.dumps({"event": "step", "stage": 0, "global_step": at, "loss": {"x": 1.0}, **more})


def test_of_a_long_log_some_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_BYTES", 10_000)
    (tmp_path / "metrics.jsonl").write_text("\n".join(step(at) for at in range(5000)))
    found = Log(tmp_path / "metrics.jsonl")
    places = [event["global_step"] for event in found.of("step")]
    assert 50 < len(places) < 10_000 / len(step(0))
    assert places[0] == 0
    assert places[-1] > 4000
    assert len({b - a for a, b in pairwise(places)}) <= 2
    assert found.notes == ["metrics.jsonl is long: curves are drawn from a part of its lines."]


def test_of_a_short_log_all_lines_are_kept_and_the_later_ones_win(tmp_path: Path) -> None:
    lines = [step(at) for at in range(10)] + [step(5, lr=2.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = Log(tmp_path / "metrics.jsonl")
    assert [event["global_step"] for event in found.of("step")] == list(range(10))
    assert found.of("step")[5]["lr"] == 2.0
    assert found.notes == []


def test_lines_and_files_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_LINE", 500)
    long = step(1, diagnostics={"x" * 600: 1})
    (tmp_path / "metrics.jsonl").write_text("\n".join([step(0), long, step(2), long]))
    found = Log(tmp_path / "metrics.jsonl")
    assert [event["global_step"] for event in found.of("step")] == [0, 2]
    assert found.notes == ["2 unusable lines of metrics.jsonl skipped."]
    monkeypatch.setattr(log, "MOST_BYTES", 80)
    found = Log(tmp_path / "metrics.jsonl")
    assert [event["global_step"] for event in found.of("step")] == [0]
    assert any("only its first" in note for note in found.notes)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "start", "classes": ["a"], "tasks": "x", "zero_shot": [0.5]},
        {"event": "start", "classes": ["a"], "tasks": [{"name": 5}], "zero_shot": [0.5]},
        {"event": "start", "classes": ["a"], "tasks": [], "zero_shot": [0.5]},
        {
            "event": "stage",
            "stage": 0,
            "accuracy_after_stage": 1e308,
            "row": [0.5],
            "seconds": 1,
            "memory": {},
        },
        {"event": "stage", "stage": 10**9, "accuracy_after_stage": 0.5, "row": [], "seconds": 1},
        {"event": "step", "stage": 0, "global_step": 10**400, "loss": {}},
        {"event": "step", "stage": 0, "global_step": -1, "loss": {}},
        {"event": "step", "stage": 0, "global_step": 0, "loss": {str(n): n for n in range(200)}},
        {"event": "step", "stage": 0, "global_step": 0, "loss": {}, "images_per_second": "many"},
        {"event": "class_weights", "stage": 0, "global_step": True, "weights": {}},
    ],
)
def test_lines_that_claim_what_cannot_be(tmp_path: Path, event: dict[str, Any]) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    assert Log(tmp_path / "metrics.jsonl").notes == ["1 unusable line of metrics.jsonl skipped."]


def test_a_log_that_is_a_pipe_or_of_another_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", tasks=2, per_task=2, steps=4)
    write_run(tmp_path / "other", tasks=4, per_task=2, steps=4)
    os.replace(tmp_path / "other" / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl")
    assert "other tasks than results.json" in read_run(tmp_path / "run").notes[0]
    build([tmp_path / "run"], tmp_path / "page.html")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    (tmp_path / "run" / "environment.json").write_text("[" * 20_000)
    notes = read_run(tmp_path / "run").notes
    assert notes[0] == "metrics.jsonl cannot be read (it is a pipe): nothing over time can be shown."
    assert notes[1].startswith("environment.json cannot be read (lists or tables nested")
    build([tmp_path / "run"], tmp_path / "page.html")


def test_a_line_without_end_is_not_followed(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # which takes no room
    assert Log(tmp_path / "metrics.jsonl").notes == [
        "1 unusable line of metrics.jsonl skipped.",
        "metrics.jsonl is long: only its first 256 MiB are shown.",
    ]
