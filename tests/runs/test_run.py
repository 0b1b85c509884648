from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import everclip
from everclip.cli.evaluate import measure
from everclip.compare.groups import settings
from everclip.data.loader import Loader, Phase
from everclip.data.pixels import Pixels
from everclip.errors import RunError, UserError
from everclip.models import zoo
from everclip.runs.find import find_runs
from everclip.runs.read import read_run
from everclip.runs.run import Run, default_path
from everclip.system.progress import Progress
from everclip.system.signals import Stop, Stopped
from everclip.training.evaluate import Scores
from everclip.training.loop import train
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.restore import device, open_run
from tests.complaints import complaint
from tests.pictures import image_folder
from tests.running import configured, run, run_for, timeless

RESULT_KEYS = {
    "schema",
    "method",
    "model",
    "data",
    "scenario",
    "seed",
    "memory_budget",
    "memory_bytes",
    "classes",
    "templates",
    "accuracy_after_stage",
    "last",
    "average",
    "matrix",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "zero_shot",
    "images_per_second",
    "peak_memory_bytes",
    "seconds",
    "trainable_parameters",
    "state_bytes",
    "optimizer_steps",
    "samples_seen",
    "tuned_on",
    "forked_from",
}


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}"]


def test_run_directory(tmp_path: Path, tokens: list[str]) -> None:
    out = tmp_path / "run"
    results = run(out, *tokens)
    assert json.loads((out / "results.json").read_text()) == results
    assert set(results) >= RESULT_KEYS
    assert results["schema"] == 1
    assert results["samples_seen"] == 8 + (8 + 8) + (8 + 12)
    assert results["optimizer_steps"] == 1 + 2 + 3
    assert results["average"] == pytest.approx(np.mean(results["accuracy_after_stage"]))
    assert [len([v for v in row if v is not None]) for row in results["matrix"]] == [1, 2, 3]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] in ("start", "stage", "end")] == [
        *("start", "stage", "stage", "stage", "end")
    ]
    assert sum(line["event"] == "step" for line in lines) == 6
    weights = [line["weights"] for line in lines if line["event"] == "class_weights"]
    assert all(math.isclose(sum(entry.values()), 1, rel_tol=1e-5) for entry in weights)
    predictions = np.load(out / "predictions.npz")
    assert predictions["id"].shape == (12,)
    assert predictions["top"].shape == (12, 5)
    right = (predictions["top"][:, 0] == predictions["label"]).mean()
    assert right == pytest.approx(results["last"])
    assert (predictions["margin"] >= 0).all()
    assert (out / "matrix.csv").read_text().splitlines()[0] == "after,task 1,task 2,task 3"
    assert len((out / "per_class.csv").read_text().splitlines()) == 7
    assert json.loads((out / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    assert sorted(folder.name for folder in (out / "checkpoints").iterdir()) == ["stage-001", "stage-002"]


def test_the_same_config_gives_the_same_numbers(tmp_path: Path, tokens: list[str]) -> None:
    first, second = (run(tmp_path / name, *tokens) for name in ("first", "second"))
    assert timeless(first) == timeless(second)
    other = run(tmp_path / "other", *tokens, "seed=1")
    assert other["classes"] == first["classes"], "the class order has a seed of its own"
    parts = [(tmp_path / name / "checkpoints/stage-002/state.pt") for name in ("first", "other")]
    held = [torch.load(part, weights_only=True)["memory"]["ids"] for part in parts]
    assert held[0] != held[1]


def test_the_written_config_repeats_the_run(tmp_path: Path, tokens: list[str]) -> None:
    first = run(tmp_path / "first", *tokens, "method=gcl", "method.gamma=0.5")
    again = run(tmp_path / "again", str(tmp_path / "first" / "config.toml"))
    assert timeless(first) == timeless(again)


def test_out_is_continued_left_alone_or_refused(tmp_path: Path, tokens: list[str]) -> None:
    out = tmp_path / "run"
    run(out, *tokens)
    with Run.open(configured(*tokens, f"out={out}")) as again:
        assert again.finished
    assert complaint(Run.open, configured(*tokens, f"out={out}", "seed=1")) == (
        f"{out} holds a run of another config (seed: 0 there, 1 here): give another out, or remove that"
        f" folder"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    for bad in ("full", "full/thesis.txt"):
        with pytest.raises(UserError, match="is not a run directory: give a new or an empty folder"):
            Run.open(configured(*tokens, f"out={tmp_path / bad}"))
    with pytest.raises(UserError, match=r"thesis.txt is not a folder.: give another out"):
        Run.open(configured(*tokens, f"out={tmp_path / 'full' / 'thesis.txt' / 'x'}"))
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"


def test_a_run_that_goes_on_measures_what_it_began_to(
    tmp_path: Path, tokens: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "whole", *tokens)
    assert run_for(tmp_path / "run", 1, *tokens) is None
    with caplog.at_level(logging.WARNING, "everclip"):
        found = run(tmp_path / "run", *tokens, "evaluate.ahead=false", "references=all")
    assert timeless(found) == timeless(whole)
    for key in ("evaluate", "references"):
        assert f"{key} stays as {tmp_path / 'run' / 'config.toml'} has it" in caplog.text


def test_two_runs_into_one_folder(tmp_path: Path, tokens: list[str]) -> None:
    config = configured(*tokens, f"out={tmp_path / 'run'}")
    with (
        Run.open(config),
        pytest.raises(
            UserError, match=rf"is in use by another run \(process {os.getpid()} on .+\): wait, or give"
        ),
        Run.open(config),
    ):
        pass
    with Run.open(config):  # the lock is gone with its holder
        pass


def test_default_paths_differ(tmp_path: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured("data=emoji", "method=gcl", "memory.budget=7", "seed=3")
    first = default_path(config)
    assert first.name.endswith("_emoji_gcl_m7_s3")
    first.mkdir(parents=True)
    assert default_path(config) != first


def test_broken_images_are_counted_and_named(tmp_path: Path, toy: str) -> None:
    root = image_folder(tmp_path / "photos", {"train": 4, "test": 2})
    (root / "train/red/0.png").write_bytes(b"no picture")
    (root / "test/blue/1.png").write_bytes(b"")
    for cache in (0, 100):
        out = tmp_path / f"run{cache}"
        results = run(out, f"data=imagefolder:{root}", f"model={toy}", f"loader.cache_mb={cache}")
        assert sorted(results["skipped_images"]) == ["test/blue/1.png", "train/red/0.png"]
        assert sum(results["test_counts"]) == 11
    assert "skipped train/red/0.png" in (tmp_path / "run100" / "run.log").read_text()


def test_a_task_without_a_readable_test_image(tmp_path: Path, toy: str) -> None:
    root = image_folder(tmp_path / "photos", {"train": 4, "test": 1})
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="not one test image of task 1 can be read"):
        run(tmp_path / "run", f"data=imagefolder:{root}", f"model={toy}")


def test_a_loss_that_is_not_finite_stops_the_run_unchanged(tokens: list[str], toy: str) -> None:
    clip, plan = zoo.load(toy), Plan.of(configured(*tokens))
    update = Update(clip, plan.method, Phase(), plan.config.train, 5)
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    loss = clip.logit_scale * float("nan")
    with pytest.raises(RunError) as error:
        update.step({"loss": loss}, "at step 1 of task 1", [3, 4])
    assert str(error.value) == (
        "the loss is nan at step 1 of task 1 (ids of its first images: 3, 4): lower train.lr"
    )
    assert all(torch.equal(value, before[key]) for key, value in clip.state_dict().items())


def test_rates_and_schedule(tokens: list[str], toy: str) -> None:
    clip = zoo.load(toy)
    config = configured(
        *tokens, "train.lr=1e-3", "train.lr_text=1e-4", "train.warmup=0.2", "train.weight_decay=0.1"
    )
    update = Update(clip, Plan.of(config).method, Phase(), config.train, 10)
    rates = {
        id(p): (g["base"], g["weight_decay"]) for g in update.optimizer.param_groups for p in g["params"]
    }
    for _, parameter in clip.image_parameters():
        assert rates[id(parameter)] == (1e-3, 0.1 if parameter.ndim > 1 else 0)
    for _, parameter in clip.text_parameters():
        assert rates[id(parameter)] == (1e-4, 0.1 if parameter.ndim > 1 else 0)
    assert rates[id(clip.logit_scale)] == (1e-3, 0)
    factors = [update.factor(step) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert 0 < factors[-1] < 0.05
    frozen = configured(*tokens).train.model_copy(update={"lr": 0.0, "lr_text": 0.0, "lr_head": 0.0})
    with pytest.raises(UserError, match="nothing to train"):
        Update(clip, Plan.of(config).method, Phase(), frozen, 10)


def test_small_budgets_are_warned_of(tokens: list[str], caplog: pytest.LogCaptureFixture) -> None:
    Plan.of(configured(*tokens, "memory.budget=5"))
    assert caplog.messages == [
        "memory.budget=5 is below the 6 classes: once more than 5 classes are seen, no class keeps an exemplar;"
        " use at least 6, or 0"
    ]
    caplog.clear()
    for budget in ("0", "6", "all"):
        Plan.of(configured(*tokens, f"memory.budget={budget}"))
    assert not caplog.messages


def test_classes_without_test_images_are_warned_of(
    tmp_path: Path, toy: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "photos", {"train": 2, "test": 2})
    for path in (root / "test" / "red").iterdir():
        path.unlink()
    results = run(tmp_path / "run", f"data=imagefolder:{root}", f"model={toy}")
    assert (
        '1 of 6 classes have no test images, such as "red": their accuracy is not measured' in caplog.messages
    )
    assert next(row for row in results["per_class"] if row["class"] == "red")["last"] is None
    with pytest.raises(UserError, match=r"task \d \(red, ...\) has no test images"):
        Plan.of(configured(f"data=imagefolder:{root}", f"model={toy}", "scenario.tasks=6"))


def test_smoke_is_small_and_says_so(tmp_path: Path, tokens: list[str]) -> None:
    results = run(tmp_path / "run", *tokens, "smoke=true")
    assert results["smoke"]
    assert results["optimizer_steps"] == 4
    assert len(results["tasks"]) == 2


def test_a_run_is_opened_for_use(tmp_path: Path, tokens: list[str]) -> None:
    results = run(tmp_path / "run", *tokens)
    _, _, stage = open_run(tmp_path / "run")
    assert stage == 2
    measured = measure(str(tmp_path / "run"), None)
    assert measured["accuracy"] == pytest.approx(results["last"])
    assert measured["images"] == 12
    with pytest.raises(UserError, match=r"is not a run directory \(it has no config.toml\)"):
        open_run(tmp_path)


def test_evaluate_on_other_images(tmp_path: Path, tokens: list[str], toy: str) -> None:
    run(tmp_path / "run", *tokens)
    fresh = image_folder(tmp_path / "fresh", {"": 3}, classes=2)
    known = measure(str(tmp_path / "run"), f"imagefolder:{fresh}")
    assert (known["images"], known["label_set"]) == (6, 6), (
        "a bare folder is used whole, all learned classes compete"
    )
    (fresh / "red").rename(fresh / "scarlet")
    assert measure(str(tmp_path / "run"), f"imagefolder:{fresh}")["label_set"] == 2
    model = measure(toy, f"imagefolder:{fresh}")
    assert (model["images"], model["label_set"]) == (6, 2)
    with pytest.raises(UserError, match="give one, or a model's name with --data"):
        measure("lite", None)


def test_device() -> None:
    assert device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert device("auto") == "cpu"
        with pytest.raises(UserError, match="device=cuda, but torch finds no such device: use device=cpu"):
            device("cuda")


def test_scores() -> None:
    scores = Scores(
        labels=(7, 3, 5),
        tasks=np.array([0, 0, 1]),
        truth=np.array([7, 3, 5]),
        ids=np.array([1, 2, 3]),
        scores=np.array([[0.5, 0.1, 0.9], [0.1, 0.6, 0.2], [0.3, 0.2, 0.9]], dtype=np.float32),
    )
    assert scores.accuracy(0, 2) == 1
    assert scores.accuracy(0, 3) == 0.5, "a class more, and the first image is taken for it"
    assert scores.accuracy(1, 3) == 1
    assert scores.accuracy_up_to(1, 3) == pytest.approx(2 / 3)
    assert scores.per_class(3, 2) == {7: 0.0, 3: 1.0, 5: 1.0}
    top = scores.top(3, 2, k=2)
    assert top["top"].tolist() == [[5, 7], [3, 5], [5, 7]]
    assert top["margin"].tolist() == pytest.approx([0.4, 0.4, 0.6])


def test_centred_features_are_those_of_the_first_task_and_outlive_a_stop(
    tmp_path: Path, tokens: list[str], toy: str
) -> None:
    words = [*tokens, "center=true"]
    whole = run(tmp_path / "whole", *words)
    plain = run(tmp_path / "plain", *tokens)
    assert (whole["center"], plain["center"]) == (True, False)
    assert whole["zero_shot"] == plain["zero_shot"]
    plan, clip, _ = open_run(tmp_path / "whole")
    first = zoo.load(toy)
    pixels = Pixels(plan.data.train.store, first.eval_transform, first.image_size, 1 << 20, 0)
    batches = [*Loader(pixels, 8).plain(plan.tasks[0].train)]
    with torch.inference_mode():
        mean = torch.cat([first.encode_image(first.normalise(batch.images)) for batch in batches]).mean(0)
    saved = json.loads((tmp_path / "whole/checkpoints/stage-002/open_clip_config.json").read_text())
    assert clip.centered
    assert saved["image_center"] == pytest.approx(mean.tolist(), abs=1e-6)
    for name in ("results.json", "checkpoints/stage-002"):
        path = tmp_path / "whole" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert timeless(run(tmp_path / "whole", *words)) == timeless(whole)


@pytest.mark.parametrize("method", ["gcl", "gdro"])
def test_class_losses_are_logged_for_the_classes_met(tmp_path: Path, tokens: list[str], method: str) -> None:
    run(tmp_path / "run", *tokens, f"method={method}", "method.gamma=1")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["event"] == "class_losses"]
    assert len(losses) == sum(line["event"] == "step" for line in lines)
    start = next(line for line in lines if line["event"] == "start")
    assert set(losses[0]["losses"]) == set(start["tasks"][0]["classes"])
    assert set(losses[-1]["losses"]) <= set(start["classes"])


def test_a_memory_per_class_is_kept_recorded_and_compared(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", "method=gcl", "scenario.tasks=[3,2,1]")
    results = run(tmp_path / "runs" / "each", *tokens, "memory.per_class=2")
    assert (results["memory_budget"], results["memory_per_class"]) == (12, 2)
    log = [json.loads(line) for line in (tmp_path / "runs/each/metrics.jsonl").read_text().splitlines()]
    kept = [line["memory"] for line in log if line["event"] == "stage"]
    assert [(memory["count"], memory["per_class"]) for memory in kept] == [(6, 2), (10, 2), (12, 2)]
    shared = run(tmp_path / "runs" / "shared", *tokens, "memory.budget=12")
    assert (shared["memory_budget"], shared["memory_per_class"]) == (12, None)
    found = find_runs([tmp_path / "runs"])
    assert [finished.value("memory.budget") for finished in found] == [12, 12]
    (setting,) = settings([read_run(tmp_path / "runs" / name) for name in ("each", "shared")])
    assert setting.memories == [12]


def test_an_order_that_varies_with_the_seed(tmp_path: Path, toy: str, photos: str, domains: str) -> None:
    tokens = (f"model={toy}", "method=zero_shot", "scenario.order=seed")
    orders = []
    for seed in (0, 1):
        results = run(tmp_path / "cil" / f"{seed}", f"data={photos}", *tokens, f"seed={seed}")
        names = sorted(results["classes"])
        assert results["class_labels"] == np.random.RandomState(seed).permutation(6).tolist()
        assert results["classes"] == [names[label] for label in results["class_labels"]]
        assert 'order = "seed"' in (tmp_path / "cil" / f"{seed}" / "config.toml").read_text()
        kind = "scenario.kind=domain-incremental"
        orders.append(
            run(tmp_path / "dil" / f"{seed}", f"data={domains}", *tokens, kind, f"seed={seed}")["tasks"]
        )
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    (setting,) = settings([read_run(tmp_path / "dil" / name) for name in "01"])
    assert setting.tasks == ["task 1", "task 2", "task 3"]
    (setting,) = settings([read_run(tmp_path / "cil" / name) for name in "01"])
    curves = [run.zero_shot for run in setting.runs]
    assert setting.zero_shot_curve == [sum(pair) / 2 for pair in zip(*curves, strict=True)]


def test_the_log_tells_the_run(tmp_path: Path, toy: str, photos: str) -> None:
    stop = Stop()
    stop.ask()
    words = [f"data={photos}", f"model={toy}", "method=gcl", f"out={tmp_path / 'run'}"]
    with pytest.raises(Stopped), Run.open(configured(*words)) as opened:
        train(opened, Progress(), stop)
    log = tmp_path / "run" / "run.log"
    assert "ended: " in log.read_text().splitlines()[-1]
    results = run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=gcl")
    lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
    assert lines[0] == f"everclip {everclip.__version__}, method gcl, seed 0"
    assert lines[1] == f"data {photos}: 6 classes, 24 training images, 12 test images"
    assert "task 1 begins: 8 images of 2 classes, 0 exemplars" in lines
    assert "task 3 begins: 8 images of 2 classes, 12 exemplars" in lines
    ends = [line for line in lines if " on all classes seen so far" in line]
    assert [line.split(":")[0] for line in ends] == ["task 1", "task 2", "task 3"]
    assert f"{results['last']:6.1%}" in ends[-1]
    assert lines[-1] == f"finished: last {results['last']:.1%}, average {results['average']:.1%}".replace(
        "%", " %"
    )
