"""Trackers: they get the numbers of a real run's log, twice where it was stopped, and never end it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everclip import plugins, trackers
from everclip.cli.app import main
from everclip.config import Config, load_config
from everclip.errors import UserError
from everclip.trackers import Numbers, Tracker
from everclip.trackers._base import numbers
from everclip.trackers.wandb import run_id
from tests.complaints import complaint
from tests.running import configured, run, run_for, timeless


@pytest.fixture
def events(tmp_path: Path, toy: str, photos: str) -> list[dict[str, Any]]:
    """The log of a run, which has other runs' company in its folder."""
    run(tmp_path / "runs" / "x", f"data={photos}", f"model={toy}", "method=gdro")
    lines = (tmp_path / "runs" / "x" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tell(config: Config, path: Path, events: list[dict[str, Any]]) -> None:
    found = trackers.start(config, path)
    for event in events:
        for tracker in found:
            tracker.log(event["event"], {key: value for key, value in event.items() if key != "event"})
    for tracker in found:
        tracker.close()


def wanted(name: str, *words: str) -> Config:
    if find_spec(trackers.tracker_class(name).package) is None:
        pytest.skip(f"{name} is not installed")
    return configured("data=emoji", f"trackers={name}", *words)


def losses(events: list[dict[str, Any]], term: str) -> list[tuple[int, float]]:
    return [(e["global_step"], e["loss"][term]) for e in events if e["event"] == "step"]


def stopped_and_continued(config: Config, path: Path, events: list[dict[str, Any]]) -> None:
    """Tell a part, then again from a checkpoint before its end, as a run that was killed does."""
    steps = [index for index, event in enumerate(events) if event["event"] == "step"]
    tell(config, path, events[: steps[3] + 1])
    tell(config, path, events[steps[2] :])


def same_in_tensorboard(path: Path, events: list[dict[str, Any]]) -> None:
    """Its event files have each step's losses and each stage's accuracy once, as ``events`` do."""
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    found = EventAccumulator(str(path / "tensorboard"))
    found.Reload()
    terms = [name for name in found.Tags()["scalars"] if name.startswith("step/loss/")]
    assert {term.removeprefix("step/loss/") for term in terms} == set(
        next(event for event in events if event["event"] == "step")["loss"]
    )
    for term in terms:
        told = [(scalar.step, scalar.value) for scalar in found.Scalars(term)]
        expected = losses(events, term.removeprefix("step/loss/"))
        assert [step for step, _ in told] == [step for step, _ in expected]
        assert [value for _, value in told] == pytest.approx([value for _, value in expected], rel=1e-6)
    stages = [event["accuracy_after_stage"] for event in events if event["event"] == "stage"]
    told = [scalar.value for scalar in found.Scalars("stage/accuracy_after_stage")]
    assert told == pytest.approx(stages, rel=1e-6)


def test_tensorboard(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    config, path = wanted("tensorboard"), tmp_path / "runs" / "x"
    stopped_and_continued(config, path, events)
    same_in_tensorboard(path, events)


@pytest.mark.parametrize("left", ["stage", "end"])
def test_tensorboard_keeps_all_curves_where_a_run_goes_on_after_its_last_step(
    tmp_path: Path, events: list[dict[str, Any]], left: str
) -> None:
    """It was stopped while a task was tested, or before its results were written."""
    config, path = wanted("tensorboard"), tmp_path / "runs" / "x"
    last = max(place for place, event in enumerate(events) if event["event"] == left)
    tell(config, path, events[:last])
    tell(config, path, events[last:])
    same_in_tensorboard(path, events)


def test_a_run_tells_its_tracker_what_it_logs(tmp_path: Path, toy: str, photos: str) -> None:
    """Also where it is stopped in the middle of a task and goes on."""
    wanted("tensorboard")
    words = [f"data={photos}", f"model={toy}", "method=gdro", "trackers=tensorboard"]
    assert run_for(tmp_path / "x", 5, *words) is None
    assert run_for(tmp_path / "x", 1000, *words) is not None
    lines = (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()
    same_in_tensorboard(tmp_path / "x", [json.loads(line) for line in lines])


@pytest.mark.slow
def test_mlflow(tmp_path: Path, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config, path = wanted("mlflow"), tmp_path / "runs" / "x"
    stopped_and_continued(config, path, events)
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        names = [row[0] for row in store.execute("select name from runs")]
        parameters = dict(store.execute("select key, value from params"))
        rows = store.execute(
            "select step, value from metrics where key like 'step/loss/%' order by step"
        ).fetchall()
    assert names == ["x"]
    assert parameters["method"] == "gdro"
    term = next(iter(next(event for event in events if event["event"] == "step")["loss"]))
    assert {step for step, _ in rows} == {step for step, _ in losses(events, term)}


def test_a_run_in_mlflow_has_all_parameters_or_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed after the first 100 of 150, the most that MLflow takes at a time."""
    logged: dict[str, list[str]] = {}

    class Client:
        def __init__(self, _: str) -> None: ...

        def get_experiment_by_name(self, _: str) -> SimpleNamespace:
            return SimpleNamespace(experiment_id="0")

        def create_run(self, _: str, run_name: str) -> SimpleNamespace:
            name = f"{run_name}{len(logged)}"
            logged[name] = []
            return SimpleNamespace(info=SimpleNamespace(run_id=name))

        def log_batch(self, name: str, *, params: list[tuple[str, str]]) -> None:
            assert len(params) <= 100
            if logged[name] and len(logged) == 1:
                raise KeyboardInterrupt
            logged[name] += [key for key, _ in params]

    entities = SimpleNamespace(Param=lambda key, value: (key, value))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr("everclip.trackers.mlflow.settings", lambda _: {f"key{n}": n for n in range(150)})
    made = trackers.tracker_class("mlflow")
    with pytest.raises(KeyboardInterrupt):
        made(made.Config(), Config(), tmp_path)
    for _ in range(2):
        made(made.Config(), Config(), tmp_path)
    assert [len(keys) for keys in logged.values()] == [100, 150]


def written(path: Path) -> list[Path]:
    """Files of wandb's runs in a run directory, once its service has written them: ``finish`` may return before."""
    import wandb  # pyright: ignore[reportMissingImports]

    wandb.teardown()
    return sorted(path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_wandb(tmp_path: Path, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    config, path = wanted("wandb"), tmp_path / "runs" / "x"
    stopped_and_continued(config, path, events)
    kept = written(path)
    assert kept
    assert len({file.name for file in kept}) == 1  # one id, however often it went on
    assert b"step/loss/" in kept[0].read_bytes()


def test_the_id_of_a_run_in_weights_and_biases_moves_with_it(tmp_path: Path) -> None:
    """At equal paths of two machines are two runs; one that an earlier everclip began keeps its id."""
    ours, theirs, moved, before = (tmp_path / name / "x" for name in ("ours", "theirs", "moved", "before"))
    for path in (ours, theirs, before / "wandb"):
        path.mkdir(parents=True)
    first = run_id(ours)
    assert first != run_id(theirs)
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first != hashlib.sha256(str(ours).encode()).hexdigest()[:16]
    moved.parent.mkdir()
    ours.rename(moved)
    assert run_id(moved) == first
    assert run_id(before) == hashlib.sha256(str(before.resolve()).encode()).hexdigest()[:16]
    (moved / "wandb").mkdir()
    assert run_id(moved) == first


@pytest.mark.slow
def test_where_a_tracker_files_the_run(
    tmp_path: Path, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option comes before the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "of-the-environment")
    path = tmp_path / "runs" / "x"
    tell(wanted("mlflow", "tracker.mlflow.experiment=figure"), path, events[:3])
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        query = "select experiments.name from runs join experiments using (experiment_id)"
        assert store.execute(query).fetchall() == [("figure",)]
    tell(wanted("wandb", "tracker.wandb.project=figure"), path, events[:3])
    (kept,) = written(path)
    assert b"figure" in kept.read_bytes()
    assert b"of-the-environment" not in kept.read_bytes()


def test_a_package_that_is_missing_is_said_before_the_run(tmp_path: Path) -> None:
    missing = [
        name for name in plugins.names("trackers") if find_spec(trackers.tracker_class(name).package) is None
    ]
    for name in missing:
        with pytest.raises(UserError, match=rf'pip install "everclip\[{name}\]"'):
            trackers.start(configured("data=emoji", f"trackers={name}"), tmp_path)
    with pytest.raises(UserError, match='unknown tracker "tensorbord"; did you mean "tensorboard"'):
        trackers.start(configured("data=emoji", "trackers=tensorbord"), tmp_path)
    assert trackers.start(configured("data=emoji"), tmp_path) == []
    assert plugins.names("trackers") == ["mlflow", "tensorboard", "wandb"]


FAILING = """
from everclip.trackers import Tracker

class Failing(Tracker):
    package = "json"

    def log(self, event, fields):
        with (self.path / "told").open("a") as file:
            file.write(event)
        if event == "step":
            raise OSError("the disk\\nis full")

    def close(self):
        raise RuntimeError("closed twice")
"""


def test_a_tracker_that_fails_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tracker of one's own is a module; its failure is one warning."""
    (tmp_path / "my_trackers").mkdir()
    (tmp_path / "my_trackers" / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    config = configured("data=emoji", "trackers=my_trackers.failing")
    with caplog.at_level(logging.WARNING, "everclip"):
        tell(config, tmp_path, [{"event": "start"}, {"event": "step"}, {"event": "stage"}])
    assert (tmp_path / "told").read_text() == "startstep"
    assert [record.getMessage() for record in caplog.records] == [
        "my_trackers.failing failed and is disabled for this run: OSError: the disk is full"
    ]
    tell(config, tmp_path, [{"event": "start"}])
    assert "RuntimeError: closed twice" in caplog.text
    tell(config, tmp_path, [])  # never opened, so never closed
    assert len(caplog.records) == 2


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_trackers").mkdir()
    (tmp_path / "my_trackers" / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    words = [f"data={photos}", f"model={toy}", "method=gcl"]
    failing = run(tmp_path / "x", *words, "trackers=my_trackers.failing")
    assert (tmp_path / "x" / "told").read_text() == "startstep"
    told = (tmp_path / "x" / "run.log").read_text()
    assert (
        told.count("my_trackers.failing failed and is disabled for this run: OSError: the disk is full") == 1
    )
    assert timeless(failing) == timeless(run(tmp_path / "alone", *words))


class Kept(Numbers):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(self.Config(), Config(), Path())
        self.told: list[tuple[int, dict[str, float]]] = []

    def add(self, numbers: Any, step: int) -> None:
        self.told.append((step, dict(numbers)))

    def close(self) -> None: ...


def test_numbers_of_events_and_their_steps() -> None:
    fields = {"a": {"b": 1, "c": [0.5, None, True]}, "d": "text", "row": [0.25, {"e": 2}]}
    assert dict(numbers(fields)) == {"a/b": 1.0, "a/c/0": 0.5, "row/0": 0.25, "row/1/e": 2.0}
    tracker = Kept()
    assert isinstance(tracker, Tracker)
    tracker.log("start", {"classes": ["x"]})
    tracker.log("step", {"global_step": 7, "stage": 0, "loss": {"gcl": 1.5}})
    tracker.log("stage", {"stage": 0, "accuracy_after_stage": 0.5})
    tracker.log("end", {"seconds": 3.0})
    assert tracker.told == [
        (7, {"step/loss/gcl": 1.5}),
        (7, {"stage/accuracy_after_stage": 0.5}),
        (7, {"end/seconds": 3.0}),
    ]
    resumed = Kept()
    resumed.log("stage", {"stage": 0, "global_step": 7, "accuracy_after_stage": 0.5})
    assert resumed.told == [(7, {"stage/accuracy_after_stage": 0.5})]
    untrained = Kept()
    untrained.log("stage", {"stage": 3, "accuracy_after_stage": 0.5})
    assert untrained.told[0][0] == 3


@pytest.mark.parametrize(
    ("event", "fields", "again"),
    [
        ("start", {"tasks": [{"train": 3}]}, 0),
        ("step", {"stage": 1, "global_step": 7}, 7),
        ("skipped", {"stage": 1, "global_step": 7, "ids": [3]}, 8),  # none is counted: the last step is 7
        ("stage", {"stage": 1, "global_step": 7}, 8),
        ("end", {"stage": 2, "global_step": 7}, 8),
        ("stage", {"stage": 1}, 2),  # of a method without steps
        ("end", {"stage": 2}, 3),
    ],
)
def test_from_which_step_on_a_run_tells_again(event: str, fields: dict[str, Any], again: int) -> None:
    """What precedes the first event was told by the process before, and stays."""
    tracker = Kept()
    tracker.log(event, fields)
    tracker.log("end", {"stage": 2, "global_step": 99})
    assert tracker.again == again


def test_the_end_of_a_run_without_steps_belongs_to_its_last_task(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is all that is left to tell."""
    (tmp_path / "sums.py").write_text(SUMS)
    monkeypatch.chdir(tmp_path)
    words = [f"data={photos}", f"model={toy}", "method=ncm", "trackers=./sums.py"]
    run(tmp_path / "x", *words)
    (tmp_path / "x" / "results.json").unlink()
    run(tmp_path / "x", *words)
    told = (tmp_path / "x" / "sums.txt").read_text().splitlines()
    assert [line for line in told if "end/" in line or "stage/seconds" in line] == [
        *(f"{task} stage/seconds" for task in range(3)),
        *["2 end/seconds"] * 2,
    ]


# Trackers of one's own ----------------------------------------------------------------------------------------------

LINES = '''"""Lines of text: the events, in a file of the run directory."""

from pydantic import Field
from everclip.trackers import Tracker

class Lines(Tracker):
    class Config(Tracker.Config):
        file: str = Field(default="events.txt", description="name of the file")

    def log(self, event, fields):
        with (self.path / self.config.file).open("a") as file:
            file.write(event + "\\n")

    def close(self):
        self.log("closed", {})
'''
SUMS = '''"""How often each number was told."""

from everclip.trackers import Numbers

class Sums(Numbers):
    def add(self, numbers, step):
        with (self.path / "sums.txt").open("a") as file:
            file.write("".join(f"{step} {name}\\n" for name in numbers))

    def close(self): ...
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a tracker in a package and another in a file."""
    (tmp_path / "my_logs").mkdir()
    (tmp_path / "my_logs" / "lines.py").write_text(LINES)
    (tmp_path / "sums.py").write_text(SUMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_trackers_of_ones_own_through_the_commands(
    own: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"data={photos}",
        f"model={toy}",
        "device=cpu",
        "scenario.tasks=2",
        "train.epochs=1",
        "method=gcl",
    ]
    told = ['trackers=["my_logs.lines", "./sums.py"]', "tracker.lines.file=mine.txt"]
    assert main(["train", *words, *told, "out=run"]) == 0
    events = [json.loads(line)["event"] for line in (own / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (own / "run" / "mine.txt").read_text().split() == [*events, "closed"]
    assert "step/loss/gcl" in (own / "run" / "sums.txt").read_text()
    capsys.readouterr()
    assert main(["train", *words, *told[:1], "tracker.lines.fiel=x", "out=other"]) == 2
    assert 'tracker "lines" has no option "fiel"; did you mean "file"?' in capsys.readouterr().err
    assert not (own / "other").exists()
    assert main(["trackers", "my_logs.lines"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Lines of text: the events")
    assert "tracker.lines.file" in out
    assert main(["trackers", "./sums.py", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["summary"], page["options"]) == ("How often each number was told", [])


def test_the_catalogue_lists_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trackers", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == plugins.names("trackers")
    assert main(["trackers", "wandb"]) == 0
    assert "tracker.wandb.project  none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "trackers=my_logs.lines tracker.lines=3",
            "tracker.lines is 3 but it is a section: write tracker.lines.OPT",
        ),
        ("trackers=my_logs.lines tracker.lines.file=3", "tracker.lines.file is 3: use text"),
        ("trackers=./sums.py tracker.sums.x=3", 'tracker "sums" has no option "x"; it has no options'),
        ("tracker.wandbb.project=x", 'unknown key "tracker.wandbb"; did you mean "tracker.wandb"'),
        ("tracker.wandb.projct=x", 'tracker "wandb" has no option "projct"; did you mean "project"?'),
        ("trackers=./half.py", 'tracker "./half.py" has no log: define what Tracker requires'),
        (
            "trackers=./needs.py",
            'trackers has "./needs.py", which is not installed: pip install everclip_none',
        ),
        (
            "trackers=./inner.py",
            'trackers has "./inner.py", which is not installed: pip install everclip_none',
        ),
        ("trackers=./none.py", 'tracker "./none.py" does not exist'),
    ],
)
def test_a_mistake_is_refused_before_the_run_in_one_line(own: Path, words: str, message: str) -> None:
    half = "from everclip.trackers import Tracker\nclass Half(Tracker):\n    def close(self): ...\n"
    (own / "half.py").write_text(half)
    for file, package in (("needs.py", "everclip_none"), ("inner.py", "everclip_none.metrics")):
        (own / file).write_text(f'{half}    def log(self, event, fields): ...\n    package = "{package}"\n')
    (own / "my.toml").write_text("[tracker]\nlines = 3\n")
    tokens = ["my.toml" if word == "tracker.lines=3" else word for word in words.split()]
    config = load_config(sorted(tokens, key=lambda word: word != "my.toml"))
    said = complaint(trackers.start, config, own)
    assert message in said
    assert "everclip_none.metrics" not in said, "pip installs what is before the dot"
