"""The second reference of a run: what the frozen features give without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everclip.cli.app import main
from everclip.config.models import NEWEST
from everclip.data.prompts import PHOTO, Prompts
from everclip.errors import UserError
from everclip.models import zoo
from everclip.runs.run import Run
from everclip.training import references
from everclip.training.estimate import Sizes
from everclip.training.frozen import FORMS, Trained, folds
from everclip.training.recorder import NOT_MEASURED
from tests.pictures import image_folder
from tests.running import configured, logged, run, run_for, timeless
from tests.training.test_checkpointer import same, state, stopped_at_every_step

ALL = "references=all"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six classes with enough pictures that some can be held out."""
    return f"imagefolder:{image_folder(tmp_path_factory.mktemp('many'), {'train': 7, 'test': 4})}"


@pytest.fixture
def words(toy: str, many: str) -> list[str]:
    return [f"data={many}", f"model={toy}"]


def without(results: dict[str, Any]) -> dict[str, Any]:
    """What the run itself has measured."""
    return {key: value for key, value in timeless(results).items() if key not in NOT_MEASURED}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["center=true"], ["tune=top:1", "train.augment=none"], ["loader.cache_mb=0"]], ids=str
)
def test_it_is_what_the_method_that_it_names_gives(tmp_path: Path, words: list[str], more: list[str]) -> None:
    found = run(tmp_path / "run", *words, "method=gcl", ALL, *more)
    after, methods = found["frozen_features_after_stage"], found["frozen_features_methods"]
    assert found["frozen_features"] == after[-1]
    assert len(after) == len(methods) == 3
    for stage, method in enumerate(methods):
        alone = run(tmp_path / f"alone{stage}", *words, *method.split(), *more)
        assert alone["accuracy_after_stage"][stage] == after[stage]
        assert alone["frozen_features"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "method=gdro",
        "method=foster",
        "method=gdro tune=top:1 cache.views=2",
        "method=icarl loader.cache_mb=0",
    ],
)
def test_the_run_itself_is_the_same_to_the_bit(
    tmp_path: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory, more: str
) -> None:
    """With pictures that cannot be read too, which the reference is the first to meet."""
    folder = image_folder(tmp_path / "broken", {"train": 7, "test": 4})
    for name in ("train/blue/1.png", "train/red/0.png", "train/white/3.png"):
        (folder / name).write_bytes(b"no picture")
    words = [f"data=imagefolder:{folder}", *words[1:], *more.split()]
    on = run(tmp_path / "on", *words, ALL)
    off = run(tmp_path / "off", *words, "references=none")
    assert on["frozen_features"] is not None
    assert off["frozen_features"] is None
    assert without(on) == without(off)
    lines = [{k: v for k, v in line.items() if k != "frozen_features"} for line in logged(tmp_path / "on")]
    assert lines == logged(tmp_path / "off")
    first, second = state(tmp_path / "on"), state(tmp_path / "off")
    assert first["record"].pop("frozen") != second["record"].pop("frozen")
    assert same(first, second)


def test_it_survives_a_stop_at_any_step(tmp_path: Path, words: list[str]) -> None:
    stopped_at_every_step(tmp_path, *words, "scenario.tasks=2", "method=gdro", ALL)


def test_a_fork_has_that_of_the_run_it_began_from(tmp_path: Path, words: list[str]) -> None:
    source = run(tmp_path / "base", *words, "method=gdro", ALL, "checkpoint.keep=3")
    fork = run(tmp_path / "fork", *words, "method=gdro", f"fork={tmp_path / 'base'}@1", "train.lr=1e-2")
    assert fork["frozen_features_after_stage"] == source["frozen_features_after_stage"]
    assert fork["frozen_features_methods"] == source["frozen_features_methods"]


def test_a_fork_cannot_measure_what_its_source_has_not(tmp_path: Path, words: list[str]) -> None:
    run(tmp_path / "base", *words, "method=gdro", "references=none", "checkpoint.keep=3")
    with pytest.raises(UserError, match=r"references=all, but .*base has not measured the frozen features"):
        run(tmp_path / "fork", *words, "method=gdro", f"fork={tmp_path / 'base'}@1", ALL)
    assert not (tmp_path / "fork").exists()


@pytest.mark.slow
def test_a_run_of_a_version_without_references_has_none(tmp_path: Path, words: list[str]) -> None:
    """Its config lacks the key; the run goes on as it was, and ``resume`` finds nothing that differs."""
    tokens = [*words, "method=gdro", "train.epochs=4"]
    assert references.wanted(configured(*tokens, "references=auto"), Sizes((14,) * 3, (8,) * 3, (2, 4, 6)))
    assert run_for(tmp_path / "old", 2, *tokens, "references=none") is None
    file = tmp_path / "old" / "config.toml"
    text = file.read_text()
    assert 'references = "none"\n' in text
    file.write_text(text.replace('references = "none"\n', "").replace(f"defaults = {NEWEST}\n", ""))
    assert Run.read_config(tmp_path / "old").references == "none"
    main(["resume", str(tmp_path / "old")])
    results = json.loads((tmp_path / "old" / "results.json").read_text())
    assert {results[key] for key in NOT_MEASURED} == {None}
    assert without(results) == without(run(tmp_path / "whole", *tokens, ALL))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("method=gdro train.epochs=1", False),  # 1 of 3 + tests
        ("method=gdro train.epochs=2", True),
        ("method=gdro train.epochs=1 references=all", True),
        ("method=gdro train.epochs=9 references=none", False),
        ("method=gdro train.epochs=9 scenario.validation=0.2", False),
        ("method=zero_shot", False),
        ("method=ncm", False),
        ("method=ridge references=all", True),
        ("method=joint method.loss=gcl train.epochs=2", True),
    ],
)
def test_auto_counts_passes(tokens: str, expected: bool) -> None:
    sizes = Sizes((1000,) * 3, (30,) * 3, (2, 4, 6))
    auto = () if "references" in tokens else ("references=auto",)
    assert references.wanted(configured("memory.budget=0", *auto, *tokens.split()), sizes) == expected


def test_it_is_said_before_training_and_in_the_end(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "scenario.tasks=2",
        "train.epochs=3",
        "train.batch_size=8",
        "device=cpu",
        f"out={tmp_path / 'run'}",
    ]
    main(["train", *words, "method=gdro", *small])
    said = capsys.readouterr()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    level, method = results["frozen_features"], results["frozen_features_methods"][-1]
    assert said.err.index(
        f"frozen features without training: {level:.1%} in the end ({method})"
    ) < said.err.index(f"frozen features {results['frozen_features_after_stage'][0]:.1%})")
    last = f"frozen features without training: {100 * level:.1f} (this run: {100 * results['last']:.1f})"
    assert last in said.out
    assert (f"{method} gets more right and trains nothing" in said.out) == (level > results["last"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert last.capitalize() in page


def test_a_dry_run_says_what_is_measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", *words, "scenario.tasks=2", "method=gdro", "train.epochs=5", "--dry-run"])
    assert (
        "references: zero-shot; frozen features, one pass over 42 training images" in capsys.readouterr().out
    )
    main(["train", *words, "scenario.tasks=2", "method=zero_shot", "--dry-run"])
    assert "references: zero-shot\n" in capsys.readouterr().out


def test_each_image_of_a_class_is_held_out_once_whatever_their_order() -> None:
    labels = torch.tensor([0] * 11 + [1] * 2 + [2] + [3] * 60)
    ids = torch.tensor(np.random.default_rng(0).permutation(len(labels)))
    of = folds(labels, ids)
    assert [of[labels == label].bincount(minlength=5).tolist() for label in (0, 1)] == [
        [3, 2, 2, 2, 2],
        [1, 1, 0, 0, 0],
    ]
    assert of[labels == 2].tolist() == [-1]
    assert (of[labels == 3] + 1).bincount().tolist() == [10] * 6  # 50 of 60
    order = torch.tensor(np.random.default_rng(1).permutation(len(labels)))
    assert torch.equal(folds(labels[order], ids[order]), of[order])


def test_the_forms_are_those_of_the_books_on_gaussian_features(toy: str) -> None:
    """Class means and linear discriminants, written independently in numpy; no form sees another's sums."""
    clip = zoo.load(toy)
    rng = np.random.default_rng(0)
    width, classes, each = 16, 4, 60
    spread = rng.normal(size=(width, width)) * np.linspace(0.05, 2, width)
    means = rng.normal(size=(classes, width)) * 0.7
    truth = np.repeat(np.arange(classes), each)
    rows = (means[truth] + rng.normal(size=(len(truth), width)) @ spread).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    trained = Trained(clip, Prompts(tuple("abcd"), (PHOTO,)))
    features, labels = torch.from_numpy(rows), torch.from_numpy(truth)
    seen, wanted, new, known = rows[::2].astype(float), truth[::2], rows[1::2].astype(float), range(classes)
    trained.add(features[::2], labels[::2], torch.arange(len(wanted)))

    def right(form: int) -> int:
        return trained.right(form, trained.whole, known, [(features[1::2], labels[1::2])])

    def solved(name: str, options: dict[str, Any], seen: Any, wanted: Any, new: Any) -> Any:
        centre = np.stack([seen[wanted == k].mean(0) for k in known])
        if name == "ncm":
            return (new @ (centre / np.linalg.norm(centre, axis=1, keepdims=True)).T).argmax(1)
        if name == "ridge":
            gram = seen.T @ seen
            strength = options["lam"] * np.diag(gram).mean() * np.eye(width)
            return (new @ np.linalg.solve(gram + strength, seen.T @ np.eye(classes)[wanted])).argmax(1)
        sigma, n = np.cov((seen - centre[wanted]).T, bias=True), len(seen)
        square, mean = (sigma**2).mean(), np.trace(sigma) / width
        eps = min(1.0, (square + mean**2) / ((n + 1) * (square - mean**2 / width)))
        weight = np.linalg.solve((1 - eps) * sigma + eps * mean * np.eye(width), centre.T)
        return (new @ weight - (centre.T * weight).sum(0) / 2).argmax(1)

    of = folds(labels[::2], torch.arange(len(wanted))).numpy()
    held = []
    for place, form in enumerate(FORMS):
        assert right(place) == (solved(*form, seen, wanted, new) == truth[1::2]).sum()
        held.append(
            sum(
                (solved(*form, seen[of != f], wanted[of != f], seen[of == f]) == wanted[of == f]).sum()
                for f in range(5)
            )
        )
    assert trained.best(known) == int(np.argmax(held))
    assert len(set(held)) > 2
    assert right(0) > right(len(FORMS) - 1)


def test_one_image_per_class_is_enough(tmp_path: Path, toy: str) -> None:
    """Nothing can be held out then: the first form is taken."""
    folder = image_folder(tmp_path / "few", {"train": 1, "test": 2})
    found = run(tmp_path / "run", f"data=imagefolder:{folder}", f"model={toy}", "method=gcl", ALL)
    assert found["frozen_features_methods"] == ["method=slda"] * 3
