"""Tuning: what is searched, what is seen, and what is recorded."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip.cli.app import main
from everclip.config import Config, load_config
from everclip.data.images import FileStore, build
from everclip.errors import NonFinite, RunError, UserError
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.runs.tuned import searched
from everclip.sweep import trials
from everclip.sweep import tune as tuning
from everclip.system.progress import Progress
from everclip.training.loop import train
from everclip.training.plan import Plan
from tests.running import run

SMALL = ["scenario.tasks=3", "train.steps=2", "train.batch_size=8", "memory.budget=12", "device=cpu"]


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", *SMALL, "method=gcl"]


def trained(opened: Run) -> dict[str, Any]:
    return train(opened, Progress())


def test_only_what_decides_how_a_run_learns_is_searched() -> None:
    fixed, search = tuning.split(
        [
            "data=imagefolder:/a,b",
            "train.lr=1e-4, 3e-4",
            "scenario.tasks=[3,3]",
            "method.tau=0.02,0.05",
            "method.blocks=[1],[2,3]",  # as in a grid
            "method.layers=[1,2]",
            "seed=1",
        ]
    )
    assert search == {
        "train.lr": ["1e-4", "3e-4"],
        "method.tau": ["0.02", "0.05"],
        "method.blocks": ["[1]", "[2,3]"],
    }
    assert fixed == ["data=imagefolder:/a,b", "scenario.tasks=[3,3]", "method.layers=[1,2]", "seed=1"]


def test_a_key_with_two_lists_is_refused() -> None:
    with pytest.raises(UserError, match=r'"train\.lr" is given twice'):
        tuning.split(["train.lr=1e-4,3e-4", "seed=1", "train.lr=1e-5,3e-5"])


def test_every_value_is_checked_before_the_first_trial(tmp_path: Path, tokens: list[str]) -> None:
    def none(run: Run) -> dict[str, Any]:
        pytest.fail("trained")

    out = tmp_path / "x"
    for most in (None, 2):
        with pytest.raises(UserError, match=r"train\.lr is 0.*; .*tau is -1"):
            tuning.tune([*tokens, "train.lr=1e-5,1e-4,0", "method.tau=0.1,-1"], out, none, print, most)
    with pytest.raises(UserError, match=r"train\.lr.* is given twice"):
        tuning.tune([*tokens, "train.lr=1e-5", "train.lr=1e-4,1e-3"], out, none, print)
    assert not out.exists()


def wide(config: Config) -> trials.Grid:
    return trials.rates(config, wide=True)


def test_the_search_where_none_is_given() -> None:
    search = wide(resolve(load_config(["train.lr=1e-5", "train.lr_text=2e-6"])))
    assert search == {
        "train.lr": ["1e-06", "3e-06", "1e-05", "3e-05"],
        "train.lr_text": ["0", "2e-07", "6e-07", "2e-06", "6e-06"],
    }


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("finetune", False),
        ("finetune method.head=linear", True),
        ("joint method.options.head=linear", True),
        ("gcl", False),
        ("icarl", True),
        ("der_expand", True),
        ("wise_ft method.loss=foster", True),
    ],
)
def test_the_rate_of_a_head_is_searched(method: str, head: bool) -> None:
    search = wide(resolve(load_config(f"method={method}".split())))
    assert search.get("train.lr_head") == (["0.0003", "0.001", "0.003", "0.01"] if head else None)
    assert ("train.lr_text" in search) == (not head), "with a head of its own none of these reads class names"


def test_held_out_images_are_training_images_of_every_class_and_domain() -> None:
    labels, domains = np.repeat([0, 0, 1, 1], 10), np.repeat([0, 1, 0, 1], 10)
    labels, domains = np.append(labels, 2), np.append(domains, 0)  # and a class of one image
    keys = [f"{n}.png" for n in range(2 * len(labels))]
    is_test = np.arange(len(keys)) >= len(labels)
    columns = [np.concatenate([part, part]).tolist() for part in (labels, domains)]
    store, names = FileStore(Path(), keys), (["a", "b", "c"], ["d", "e"])
    whole = build("x", store, columns[0], columns[1], is_test.tolist(), *names, ["{}"]).train
    train, test = whole.apart(0.2, "validation")
    assert len(test) == 4 * 2
    assert sorted([*train.ids, *test.ids]) == sorted(whole.ids)
    assert np.unique(np.stack([test.labels, test.domains]), axis=1).shape == (2, 4)
    assert train.counts(3).tolist() == [16, 16, 1]
    assert whole.apart(0.2, "validation")[1].ids.tolist() == test.ids.tolist()
    assert len(whole.apart(0.001, "validation")[1]) == 4
    assert whole.apart(0.999, "validation")[0].counts(3).tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    "kind",
    [
        "class-incremental",
        "few-shot scenario.shots=2",
        "long-tailed scenario.imbalance=2",
        "blurry",
        "data-incremental",
    ],
)
def test_a_validation_plan_has_the_images_of_the_first_tasks_and_no_test_image(
    tokens: list[str], kind: str
) -> None:
    words = [*tokens, *f"scenario.kind={kind}".split()]
    whole, part = (
        Plan.of(resolve(load_config([*words, *more]))) for more in ([], ["scenario.validation=0.5"])
    )
    assert len(part.tasks) == 2
    for task, full in zip(part.tasks, whole.tasks, strict=False):
        assert task.classes == full.classes
        assert len(task.test)
        assert sorted([*task.train.ids, *task.test.ids]) == sorted(full.train.ids)


def test_a_session_of_single_images_has_none_to_score_on(tokens: list[str]) -> None:
    words = [*tokens, "scenario.kind=few-shot", "scenario.shots=1", "scenario.validation=0.5"]
    with pytest.raises(UserError, match=r"hold out none: use scenario\.validation_tasks=1$"):
        Plan.of(resolve(load_config(words)))
    plan = Plan.of(resolve(load_config([*words, "scenario.validation_tasks=1"])))
    assert [(len(task.train), len(task.test)) for task in plan.tasks] == [(8, 8)]


def test_a_validation_plan_has_as_many_exemplars_per_class(tokens: list[str]) -> None:
    whole, part = (
        Plan.of(resolve(load_config([*tokens, *more]))) for more in ([], ["scenario.validation=0.5"])
    )
    # 12 exemplars for six classes are two a class, and so are 8 for the four that tuning sees
    assert (whole.budget(), part.budget(), part.sizes().budget) == (12, 8, 8)
    assert (
        Plan.of(resolve(load_config([*tokens[:-1], "method=joint", "scenario.validation=0.5"]))).budget() == 0
    )


@pytest.mark.parametrize(("budget", "kept"), [(9, 0), (12, 8)])
def test_tuning_uses_the_memory_where_the_run_does(tokens: list[str], budget: int, kept: int) -> None:
    """Five of each class of the first task are ten; scaled, 12 would be too few."""
    words = [*tokens[:-1], "method=multilayer_lda", "method.adapt=finetune"]
    words = [*(word for word in words if "memory" not in word), f"memory.budget={budget}"]
    whole, part = (
        Plan.of(resolve(load_config([*words, *more]))) for more in ([], ["scenario.validation=0.5"])
    )
    assert part.method.capabilities.uses_memory == whole.method.capabilities.uses_memory == bool(kept)
    assert part.budget() == kept


def test_a_search_may_see_more_tasks(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["scenario.validation_tasks=3", "scenario.validation=0.5"]
    plan = Plan.of(resolve(load_config([*tokens, *more])))
    assert (len(plan.tasks), plan.budget()) == (3, 12)
    assert main(["tune", *tokens, *more, "train.lr=1e-5,1e-4", f"out={tmp_path / 'tune'}", "--json"]) == 0
    assert (
        "tasks 1-3, 0.5 of their training images, memory 12"
        in json.loads(capsys.readouterr().out)["tuned_on"]
    )


def test_tune_chooses_continues_and_writes_a_config(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tune"
    words = ["tune", *tokens, "train.lr=1e-5,1e-2", "train.lr_text=0,1e-3", f"out={out}"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key, scores in found["tried"].items():
        assert scores[found["values"][key]] == max(scores.values())
    runs = sorted(path.parent for path in out.glob("*/results.json"))
    assert len(runs) == 4
    stamps = [(path / "results.json").stat().st_mtime_ns for path in runs]
    results = json.loads((runs[0] / "results.json").read_text())
    assert (len(results["tasks"]), results["validation"]) == (2, 0.2)
    assert main(words) == 0
    assert f"everclip train {out}/tuned.toml" in capsys.readouterr().out
    assert [(path / "results.json").stat().st_mtime_ns for path in runs] == stamps
    config = load_config([str(out / "tuned.toml")])
    assert config.scenario.validation is None
    assert config.train.lr == float(found["values"]["train.lr"])
    assert run(tmp_path / "run", str(out / "tuned.toml"))["tuned_on"] == found["tuned_on"]
    assert "tasks 1-2, 0.2 of their training images, memory 12, seed 0" in found["tuned_on"]


def test_the_command_that_follows_trains_where_the_config_file_names_out(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text('out = "here"\n')
    assert main(["tune", "base.toml", *tokens, "train.lr=1e-5,1e-4"]) == 0
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("everclip ")]
    assert command == "everclip train here/tuned.toml"
    assert load_config(["here/tuned.toml"]).out is None
    assert main([*shlex.split(command)[1:], "smoke=true"]) == 0


def test_epochs_grow_to_four_times_the_configs_own_whoever_counts_them(tmp_path: Path) -> None:
    trials = tuning._Trials(["method=mg_clip"], tmp_path, lambda run: {}, print)
    start = resolve(load_config(["method=mg_clip", "method.epochs=2", "train.epochs=3"]))
    for key, most in (("method.epochs", 8), ("train.epochs", 12)):
        assert [trials.valid(start, key, str(most + more)) for more in (0, 1)] == [True, False]
    assert trials.valid(start, "method.rank", "99")


def test_equal_settings_are_trained_once(tmp_path: Path, tokens: list[str]) -> None:
    opened: list[Path] = []

    def once(here: Run) -> dict[str, Any]:
        opened.append(here.path)
        return trained(here)

    words = [*tokens, "scenario.validation=0.4", "train.lr=1e-4,0.0001", "train.augment=none,shift_flip"]
    choice = tuning.tune(words, tmp_path, once, print)
    assert len(opened) == 2
    assert choice.values["train.lr"] == "1e-4"
    assert choice.config.tuned_on is not None
    assert "0.4 of their training images" in choice.config.tuned_on


def test_a_semicolon_in_a_path_is_none_of_the_record(tmp_path: Path, tokens: list[str], photos: str) -> None:
    shutil.copytree(photos.partition(":")[2], tmp_path / "a; b")
    words = [f"data=imagefolder:{tmp_path / 'a; b'}", *tokens[1:], "train.lr=1e-5,1e-4"]
    choice = tuning.tune(words, tmp_path / "out", trained, print)
    found = searched(choice.config.tuned_on)
    assert found is not None
    assert [*found.tried] == ["train.lr"]


def test_a_rate_that_does_not_train_loses(tmp_path: Path, tokens: list[str]) -> None:
    def fails(here: Run) -> dict[str, Any]:
        if here.config.train.lr == 1:
            (here.path / "checkpoints" / "stage-1").mkdir(parents=True)
            raise NonFinite("the loss is nan")
        return trained(here)

    choice = tuning.tune([*tokens, "train.lr=1.0,1e-4"], tmp_path, fails, print)
    assert choice.tried["train.lr"]["1.0"] is None
    assert choice.values == {"train.lr": "1e-4"}
    again = tuning.tune(
        [*tokens, "train.lr=1.0,1e-4"], tmp_path, lambda run: pytest.fail("trained again"), print
    )
    assert again.tried == choice.tried
    assert not [*tmp_path.glob("*/checkpoints")]
    with pytest.raises(RunError, match=r"no value of train\.lr trains \(1\.0, 1e0\): try smaller rates"):
        tuning.tune([*tokens, "train.lr=1.0,1e0"], tmp_path, fails, print)


def test_a_full_disk_ends_a_search_and_says_nothing_about_a_rate(tmp_path: Path, tokens: list[str]) -> None:
    def fails(here: Run) -> dict[str, Any]:
        if full and here.config.train.lr == 1e-4:
            raise RunError("the disk is full")
        return trained(here)

    full, words = True, [*tokens, "train.lr=1e-5,1e-4"]
    with pytest.raises(RunError, match="the disk is full"):
        tuning.tune(words, tmp_path, fails, print)
    full = False
    assert None not in tuning.tune(words, tmp_path, fails, print).tried["train.lr"].values()


def test_a_full_disk_when_it_has_chosen_is_said_in_one_line(
    tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tuning, "write_atomic", full)
    with pytest.raises(
        RunError, match=r"written \(No space left on device\): make room; the same command cont"
    ):
        tuning.tune([*tokens, "train.lr=1e-5,1e-4"], tmp_path, trained, print)
    monkeypatch.undo()
    tuning.tune([*tokens, "train.lr=1e-5,1e-4"], tmp_path, lambda run: pytest.fail("trained again"), print)
    assert (tmp_path / "tuned.toml").is_file()


def test_nothing_to_tune(tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *tokens[:-1], "method=zero_shot"]) == 2
    assert "zero_shot trains nothing" in capsys.readouterr().err
