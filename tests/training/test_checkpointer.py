"""A run that stopped goes on as if it had not, bit for bit: at any step, between phases, while it is tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from everclip import plugins
from everclip.errors import UserError
from everclip.runs.run import Run
from everclip.system.checkpoint import amend, names
from everclip.system.progress import Progress
from everclip.system.signals import Stopped
from everclip.training import loop, testing
from everclip.training.restore import SETTINGS, WEIGHTS
from tests.marks import slow_after
from tests.pictures import image_folder
from tests.running import TIMES, configured, logged, run, run_for, timeless

KINDS = [
    "gdro method.temperature=per_sample method.gamma_decay=2",
    "gcl method.carry_over=false",
    "foster",
    "foster method.head_init=zero_shot tune=lora:2",
    "zscl method.ensemble_every=2 method.emoji_count=9",
    "ewc method.head=linear",
    "cassle method.objective=sogclr method.probe_epochs=1",
    "ncm method.adapt=gdro",
    "wise_ft method.anchor=previous method.loss=dark_er tune=lora:2",
]
"""Methods whose state within a task differs in kind."""
METHODS = plugins.names("methods")
PLAIN = ("train.precision=fp32", "loader.workers=0")
OTHER = ("train.precision=bf16", "loader.workers=2", "loader.cache_mb=0")


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", "scenario.tasks=2"]


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit, but for what a clock says."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        keys = set(one) - TIMES - {"training_seconds", "stage_seconds", "log_bytes"}
        return set(one) == set(other) and all(same(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def state(out: Path) -> dict[str, Any]:
    """All of the newest checkpoint of a run."""
    folder = max((out / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    weights = {
        name: load_file(folder / name) for name in sorted(names(folder)) if name.endswith(".safetensors")
    }
    return {"weights": weights} | torch.load(folder / "state.pt", weights_only=True)


def stopped_at_every_step(tmp_path: Path, *tokens: str) -> None:
    whole, stops = run(tmp_path / "whole", *tokens), 0
    while (parts := run_for(tmp_path / "parts", 1, *tokens)) is None:
        stops += 1
        assert stops < 1000
    assert stops == sum(line["event"] == "step" for line in logged(tmp_path / "whole"))
    assert timeless(parts) == timeless(whole)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


@pytest.mark.parametrize("variant", slow_after(3, KINDS))
def test_any_step(variant: str, tmp_path: Path, tokens: list[str]) -> None:
    other = OTHER if KINDS.index(variant) % 2 else PLAIN
    stopped_at_every_step(tmp_path, *tokens, *f"method={variant}".split(), *other)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_any_step_of_any_method(name: str, tmp_path: Path, tokens: list[str]) -> None:
    other = PLAIN if METHODS.index(name) % 2 else OTHER
    probe = ["method.probe_epochs=1"] if name in ("cassle", "cclis", "co2l") else []
    stopped_at_every_step(tmp_path, *tokens, f"method={name}", *probe, *other)


@pytest.mark.parametrize("variant", ["gdro", "finetune tune=lora:2", "cassle method.objective=sogclr"])
def test_optimizer_estimators_and_random_state_are_those_of_a_run_that_was_not_stopped(
    variant: str, tmp_path: Path, tokens: list[str]
) -> None:
    words = [*tokens, *f"method={variant}".split(), "train.epochs=3"]
    assert run_for(tmp_path / "once", 7, *words) is None
    for steps in (2, 4, 1):
        assert run_for(tmp_path / "thrice", steps, *words) is None
    once, thrice = state(tmp_path / "once"), state(tmp_path / "thrice")
    assert same(once, thrice)
    assert once["update"]["optimizer"]["state"]
    assert once["update"]["done"] > 0
    assert set(once["random"]) >= {"cpu"}


NOISY = """
import torch
from everclip.methods.clip import ClipLoss

class Noisy(ClipLoss):
    def loss(self, features, batch, phase):
        image = features["image"] + 0.1 * torch.randn_like(features["image"])
        return super().loss(features | {"image": image}, batch, phase)
"""


def test_a_method_that_draws_from_torch(
    tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "__init__.py").write_text("")
    (tmp_path / "noise" / "gaussian.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    stopped_at_every_step(tmp_path, *tokens, "method=noise.gaussian")


@pytest.mark.slow
def test_losses_summed_up_since_the_last_line_of_the_log(tmp_path: Path, tokens: list[str]) -> None:
    words = [*tokens, "train.epochs=25"]  # every second or third step has such a line
    run(tmp_path / "whole", *words)
    for steps in (24, 61, 17):
        assert run_for(tmp_path / "parts", steps, *words) is None
    run(tmp_path / "parts", *words)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_saved_every_few_steps(tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, which saves nothing, goes back to the last of them."""
    words = [*tokens, "train.epochs=3"]
    whole = run(tmp_path / "whole", *words)
    log = Run.log

    def crashing(self: Run, event: str, **fields: Any) -> None:
        log(self, event, **fields)
        if event == "step" and fields["global_step"] == 8:
            raise RuntimeError("a crash")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", crashing)
        with pytest.raises(RuntimeError, match="a crash"):
            run(tmp_path / "parts", *words, "checkpoint.every=steps:2")
    places = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert places == ["begin", "stage-000", "task-001-phase-0-step-000002"]
    assert timeless(run(tmp_path / "parts", *words)) == timeless(whole), "how often it is saved may change"
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_saved_by_the_clock(tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[str] = []
    commit = loop.Checkpointer._save

    def noting(self: loop.Checkpointer, place: Any, update: Any) -> None:
        commits.append(place.name)
        commit(self, place, update)

    monkeypatch.setattr(loop.Checkpointer, "_save", noting)
    run(tmp_path / "run", *tokens, "checkpoint.every=minutes:1")
    assert not commits
    clock = iter(range(0, 100_000, 61))
    monkeypatch.setattr("everclip.training.checkpointer.time.monotonic", lambda: next(clock))
    run(tmp_path / "again", *tokens, "checkpoint.every=minutes:1")
    assert len(commits) == sum(line["event"] == "step" for line in logged(tmp_path / "again"))


def test_between_phases_a_run_is_saved(
    tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a second phase begins with (here the boosted tower) is never lost."""
    words = [*tokens, "method=foster"]
    whole = run(tmp_path / "whole", *words)
    log = Run.log

    def crashing(self: Run, event: str, **fields: Any) -> None:
        if event == "step" and fields["phase"] == "compress":
            raise RuntimeError("a crash")
        log(self, event, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", crashing)
        with pytest.raises(RuntimeError, match="a crash"):
            run(tmp_path / "parts", *words)
    assert (tmp_path / "parts" / "checkpoints" / "task-001-phase-1-step-000000").is_dir()
    assert timeless(run(tmp_path / "parts", *words)) == timeless(whole)
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


@pytest.mark.parametrize("at", slow_after(1, [1, 2, 3]))
def test_stopped_while_it_is_tested(
    at: int, tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first test is that of the model before any task; the later ones find their task saved."""
    whole = run(tmp_path / "whole", *tokens)
    tests = iter(range(1, 10))

    def stopping(test: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any) -> Any:
            if next(tests) == at:
                raise Stopped(15)
            return test(*arguments)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_pretrained", stopping(loop.evaluate_pretrained))
        patch.setattr(testing, "evaluate", stopping(testing.evaluate))
        with pytest.raises(Stopped):
            run(tmp_path / "parts", *tokens)
    there = sorted(path.name for path in (tmp_path / "parts").glob("checkpoints/*"))
    assert there == [[], ["begin", "stage-000"], ["stage-000", "stage-001"]][at - 1]
    steps = sum(line["event"] == "step" for line in logged(tmp_path / "parts")) if at > 1 else 0
    assert timeless(run(tmp_path / "parts", *tokens)) == timeless(whole)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert steps == [0, 2, 5][at - 1], "none of them is made again"


def test_other_templates_are_refused_wherever_they_come_from(tmp_path: Path, tokens: list[str]) -> None:
    """A file of templates may move, but not change."""
    file, out = tmp_path / "a.txt", tmp_path / "run"
    file.write_text("a photo of a {}.\n")
    assert run_for(out, 1, *tokens, f"templates={file}") is None
    file.write_text("a sketch of a {}.\n")
    with (
        Run(out, Run.read_config(out)) as opened,
        pytest.raises(UserError, match="the templates are others than"),
    ):
        loop.train(opened, Progress())
    moved = file.rename(tmp_path / "b.txt")
    moved.write_text("a photo of a {}.\n")
    with edited(out, str(file), str(moved)) as opened:
        assert loop.train(opened, Progress())


def test_a_checkpoint_of_an_earlier_version_is_compared_in_what_it_noted(
    tmp_path: Path, tokens: list[str]
) -> None:
    out = tmp_path / "run"
    assert run_for(out, 1, *tokens) is None
    for file in (out / "checkpoints").rglob(SETTINGS):
        known = json.loads(file.read_text())
        kept = {key: value for key, value in known.items() if key.partition(".")[0] in ("seed", "memory")}
        amend(file.parent, {SETTINGS: json.dumps(kept).encode()})
    with (
        edited(out, "budget = 12", "budget = 6") as opened,
        pytest.raises(UserError, match=r"memory\.budget"),
    ):
        loop.train(opened, Progress())
    with edited(out, "budget = 6", "budget = 12") as opened:
        assert loop.train(opened, Progress())


@pytest.fixture
def broken(tmp_path: Path) -> str:
    root = image_folder(tmp_path / "photos", {"train": 4, "test": 2})
    for name in ("train/red/0.png", "train/green/3.png", "test/blue/1.png"):
        (root / name).write_bytes(b"no picture")
    return f"data=imagefolder:{root}"


@pytest.mark.slow
@pytest.mark.parametrize("cache", [0, 100])
def test_images_found_broken_on_the_way(cache: int, tmp_path: Path, broken: str, toy: str) -> None:
    """Which images a task counts is settled when it begins: one that breaks later does not change the order."""
    words = [broken, f"model={toy}", "scenario.tasks=2", f"loader.cache_mb={cache}", "train.batch_size=2"]
    whole, stops = run(tmp_path / "whole", *words), 0
    while (parts := run_for(tmp_path / "parts", 3, *words)) is None:
        stops += 1
        assert stops < 1000
    assert len(parts["skipped_images"]) == 3
    assert timeless(parts) == timeless(whole)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_a_run_says_where_it_goes_on(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tokens, "method=foster"]
    for steps, line in (
        (1, "before task 1"),
        (3, "in task 1 after step 1 of phase 1"),
        (2, "in task 2 after step 2 of phase 1"),
    ):
        capsys.readouterr()
        run_for(tmp_path / "run", steps, *words)
        said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("continued")]
        assert said == ([] if steps == 1 else [f"continued {line}"])
    assert configured(*words).checkpoint.every == "task"


@pytest.mark.parametrize("header", [b"", b"no safetensors"])
def test_weights_that_are_whole_and_cannot_be_read_are_one_line(
    header: bytes, tmp_path: Path, tokens: list[str]
) -> None:
    assert run_for(tmp_path / "run", 1, *tokens) is None
    opened = Run(tmp_path / "run", Run.read_config(tmp_path / "run"))
    amend(opened.store.folder(opened.store.places()[-1]), {WEIGHTS: header})
    with opened, pytest.raises(UserError, match="does not fit this run or these package versions"):
        loop.train(opened, Progress())


def edited(out: Path, before: str, after: str) -> Run:
    file = out / "config.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    return Run(out, Run.read_config(out))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_whose_config_was_edited_goes_on_only_with_what_it_began_with(
    steps: int, tmp_path: Path, tokens: list[str]
) -> None:
    whole, out = run(tmp_path / "whole", *tokens), tmp_path / "run"
    assert run_for(out, steps, *tokens) is None
    log = (out / "metrics.jsonl").read_bytes()
    says = r"run/config.toml has changed since this run began \(\"memory.budget\": 12 then, 6 now\): put it back, or"
    with edited(out, "budget = 12", "budget = 6") as opened, pytest.raises(UserError, match=says):
        loop.train(opened, Progress())
    assert (out / "metrics.jsonl").read_bytes() == log
    for before, after in (
        ("ahead = true", "ahead = false"),
        ("views = 1", "views = 2"),
        ('model = "', 'model = "x'),
    ):
        with (
            edited(out, before, after) as opened,
            pytest.raises(UserError, match="has changed since this run began"),
        ):
            loop.train(opened, Progress())
        edited(out, after, before)
    edited(out, "workers = 2", "workers = 0")
    with edited(out, "budget = 6", "budget = 12") as opened:
        assert timeless(loop.train(opened, Progress())) == timeless(whole)
