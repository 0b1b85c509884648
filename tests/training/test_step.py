"""A training step, and what becomes of one with nan or inf in it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from everclip.data.loader import Batch, Phase
from everclip.errors import NonFinite, RunError
from everclip.methods.base.method import Method
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.gdro import Gdro
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.system.signals import Stop
from everclip.training import loop
from everclip.training.context import Context
from everclip.training.nonfinite import IN_A_ROW
from everclip.training.optim import Update
from everclip.training.restore import grow
from everclip.training.step import step
from tests.marks import slow_after
from tests.running import configured, run, run_for, timeless

METHODS = [
    "gdro",
    "slda method.adapt=gdro",
    "gdro method.dro=sagawa method.temperature=learnable",
    "gcl method.temperature=per_sample method.negatives=multi_positive",
    "finetune",
    "ewc method.head=linear",
    "cassle method.objective=sogclr",
]
Poison = Callable[[Context, pytest.MonkeyPatch, float], None]


def _learner(context: Context) -> Method:
    return context.method.learner(context.plan.tasks[0])


def poison_features(name: str) -> Poison:
    def poison(context: Context, patch: pytest.MonkeyPatch, value: float) -> None:
        encode = _learner(context).encode

        def poisoned(*args: Any) -> dict[str, Tensor]:
            features = encode(*args)
            key = name if name in features else "image"
            spoilt = features[key].clone()
            spoilt.view(-1)[-1] = value
            return features | {key: spoilt}

        patch.setattr(_learner(context), "encode", poisoned)

    return poison


def poison_tower(context: Context, patch: pytest.MonkeyPatch, value: float) -> None:
    encode = context.clip.model.encode_image
    patch.setattr(context.clip.model, "encode_image", lambda images: encode(images) + value)


def poison_loss(context: Context, patch: pytest.MonkeyPatch, value: float) -> None:
    """As an overflow would: the real loss is called, and has changed its state."""
    loss = _learner(context).loss
    patch.setattr(_learner(context), "loss", lambda *args: {k: v * value for k, v in loss(*args).items()})


def poison_penalty(context: Context, patch: pytest.MonkeyPatch, value: float) -> None:
    patch.setattr(_learner(context), "penalty", lambda clip: {"penalty": clip.logit_scale.detach() * value})


def poison_gradient(context: Context, patch: pytest.MonkeyPatch, value: float) -> None:
    """The loss is finite, and the gradient of a tower's parameter is not."""
    encode = _learner(context).encode

    def poisoned(clip: Any, *args: Any) -> dict[str, Tensor]:
        features = encode(clip, *args)
        features["image"].register_hook(lambda gradient: gradient * value)
        return features

    patch.setattr(_learner(context), "encode", poisoned)


WAYS: dict[str, tuple[Poison, str]] = {
    "image features": (poison_features("image"), 'the features "image" are not finite'),
    "text features": (poison_features("text"), "are not finite"),
    "the tower": (poison_tower, 'the features "image" are not finite'),
    "loss": (poison_loss, "the loss is (nan|inf|-inf)"),
    "penalty": (poison_penalty, "the loss is (nan|inf)"),
    "gradient": (poison_gradient, "the gradient is (nan|inf)"),
}


@dataclass
class Bench:
    """A run in the middle of its first phase, one step at a time."""

    run: Run
    context: Context
    update: Update
    batches: Iterator[Batch]
    phase: Phase

    def go(self) -> None:
        step(self.context, self.update, next(self.batches), self.phase, self.context.plan.tasks[0])

    def state(self) -> dict[str, Any]:
        """All that must not learn of a bad step."""
        context = self.context
        return copy.deepcopy(
            {
                "weights": context.clip.state_dict(),
                "method": context.method.state_dict(),
                "optimizer": self.update.optimizer.state_dict()["state"],
                "memory": context.memory.state_dict(),
                "steps": context.record.optimizer_steps,
            }
        )

    def log(self) -> list[dict[str, Any]]:
        lines = (self.run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def bench(tmp_path: Path, toy: str, photos: str) -> Iterator[Callable[..., Bench]]:
    runs: list[Run] = []

    def make(method: str, *tokens: str) -> Bench:
        name, *options = method.split()
        words = (f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2", "train.batch_size=6")
        opened = Run.open(configured(*words, *options, *tokens, f"out={tmp_path / str(len(runs))}"))
        runs.append(opened.__enter__())
        context, _ = loop._start(opened, Progress(), Stop())
        task = context.plan.tasks[0]
        grow(context.plan, context.clip, task)
        context.method.begin_task(context.clip, task, task.train)
        learner = context.method.learner(task)
        phase = learner.phases(task)[0]
        learner.begin_phase(context.clip, phase)
        update = Update(context.clip, learner, phase, context.plan.config.train, 1000)
        current = torch.ones(len(task.train), dtype=torch.bool).numpy()
        return Bench(
            opened, context, update, context.loader.batches(task.train, current, phase, 0, 0, 1000), phase
        )

    yield make
    for opened in runs:
        opened.__exit__(None, None, None)


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", slow_after(4, METHODS))
def test_a_step_left_out_changes_nothing(method: str, way: str, bench: Callable[..., Bench]) -> None:
    made = bench(method, "train.nonfinite=skip")
    poison, reason = WAYS[way]
    made.go()
    for value in (float("nan"), float("inf")):
        before, done, lines = made.state(), made.update.done, len(made.log())
        with pytest.MonkeyPatch.context() as patch:
            poison(made.context, patch, value)
            made.go()
        assert equal(made.state(), before)
        assert made.update.done == done + 1
        (line,) = made.log()[lines:]
        assert (line["event"], line["step"], len(line["ids"])) == ("skipped", done, 6)
        assert re.search(reason, line["reason"])
    made.go()
    assert not equal(made.state(), before)
    assert (made.context.record.skipped_steps, made.context.record.skipped_in_a_row) == (2, 0)
    assert all(p.isfinite().all() for p in made.context.clip.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_stops_the_run_leaves_the_weights(way: str, bench: Callable[..., Bench]) -> None:
    made = bench("gdro", "train.clip_norm=none")
    poison, reason = WAYS[way]
    made.go()
    before = made.state()
    poison(made.context, pytest.MonkeyPatch(), float("inf"))
    with pytest.raises(NonFinite, match=reason) as error:
        made.go()
    assert "at step 2 of task 1 (ids of its first images: " in str(error.value)
    assert str(error.value).endswith("): lower train.lr, or set train.clip_norm=1")
    assert "\n" not in str(error.value)
    after = made.state()
    changed = [key for key in before if not equal(after[key], before[key])]
    # a loss changes its moving averages; these are not saved, for the run ends here
    assert changed == ([] if "features" in way or way == "the tower" else ["method"])


@pytest.mark.slow
def test_a_hundred_bad_steps_are_all_left_out(bench: Callable[..., Bench]) -> None:
    made = bench("gdro", "train.nonfinite=skip", "train.precision=bf16", "train.accumulate=2")
    ways = [poison for poison, _ in WAYS.values()]
    for number in range(100):
        made.go()
        before = made.state()
        with pytest.MonkeyPatch.context() as patch:
            ways[number % len(ways)](
                made.context, patch, [float("nan"), float("inf"), -float("inf")][number % 3]
            )
            made.go()
        after = made.state()
        assert [key for key in after if not equal(after[key], before[key])] == [], number
    assert made.context.record.skipped_steps == 100
    assert made.context.record.optimizer_steps == 100
    assert sum(line["event"] == "skipped" for line in made.log()) == 100


def test_a_buffer_too_large_to_be_copied_stops(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.training.nonfinite._COPIED_BYTES", 0)
    made = bench("gcl method.temperature=learnable", "train.nonfinite=skip")
    poison_loss(made.context, monkeypatch, float("nan"))
    with pytest.raises(
        RunError, match=r'the loss has changed "tau", which cannot be undone: use train\.nonf'
    ):
        made.go()


def poisoned_at(patch: pytest.MonkeyPatch, bad: Callable[[Batch], bool]) -> None:
    encode = Gdro.encode

    def poisoned(self: Method, clip: Any, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = encode(self, clip, batch, phase)  # pyright: ignore[reportArgumentType]
        return features | {"image": features["image"] * float("nan")} if bad(batch) else features

    patch.setattr(Gdro, "encode", poisoned)


def test_a_run_goes_on_without_a_bad_batch(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"data={photos}", f"model={toy}", "method=gdro", "train.nonfinite=skip")
    poisoned_at(monkeypatch, lambda batch: batch.key == (1, 0, 0, 1))
    results = run(tmp_path / "run", *words)
    assert results["skipped_steps"] == 1
    for after in (3, 4):  # right before it, and behind it
        assert run_for(tmp_path / f"parts{after}", after, *words) is None
        assert timeless(run(tmp_path / f"parts{after}", *words)) == timeless(results)


def test_ten_in_a_row_end_the_run(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"data={photos}", f"model={toy}", "method=gdro", "train.nonfinite=skip", "train.epochs=15")
    poisoned_at(monkeypatch, lambda batch: batch.number >= 2)
    with pytest.raises(
        RunError, match=r'10 steps in a row were skipped; the last one: the features "image" are'
    ):
        run(tmp_path / "run", *words)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("skipped") == IN_A_ROW
    assert events.count("step") == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train.lr=1e39", r'weights are not finite after phase "train": lower train\.lr'),
        (
            "train.lr=1e20 memory.policy=herding",
            r"the model gives nan for 24 of 24 images \(ids of its first images: ",
        ),
        (
            "train.lr=1e20",
            r"the model gives nan for 12 of 12 images .*: its weights have diverged or are damaged",
        ),
    ],
    ids=["weights", "features", "scores"],
)
def test_what_the_last_step_has_ruined_ends_the_run(
    words: str, line: str, tmp_path: Path, toy: str, photos: str
) -> None:
    """No later step tells of it. Of finite weights that give nan, that is seen where the model is used."""
    tokens = (f"data={photos}", f"model={toy}", "method=gdro", "scenario.tasks=1", "train.batch_size=64")
    with pytest.raises(NonFinite, match=line):
        run(tmp_path / "run", *tokens, *words.split())
    saved = (tmp_path / "run" / "checkpoints" / "stage-000").exists()
    assert saved == (words == "train.lr=1e20"), "where the memory asks for features, before it chooses"


def test_a_table_takes_back_what_was_set() -> None:
    table = SampleTable(2)
    table.set([5, 3], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    before = table.state_dict()
    with table.undoable() as undo:
        table.set([3, 9], torch.zeros(2, 2))
        table.set([9, 5], torch.ones(2, 2))
        undo()
    assert equal(table.state_dict(), before)
    with table.undoable() as undo:
        undo()
    table.set([3], torch.zeros(1, 2))
    with table.undoable():
        table.set([3], torch.ones(1, 2))
    assert table.get([3])[0].tolist() == [[1, 1]]
