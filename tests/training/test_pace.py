"""How long a run takes here: passes of the towers, times the seconds of a pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.models import zoo
from everclip.models.catalogue import Costs, costs
from everclip.training import estimate, pace, references
from everclip.training.estimate import Sizes, Work
from everclip.training.pace import Pace
from everclip.training.plan import Plan
from tests.running import configured

MODEL = Costs(2e9, 5e8, 1000, 500, (0, 0))


def test_seconds_are_passes_times_the_seconds_of_a_pass() -> None:
    config = configured("method=gcl", "references=none")
    sizes = Sizes((40, 40), (10, 10), (2, 4), 1)
    whole = estimate.work(config, sizes)
    images = 3 * whole.trained + whole.forward
    prompts = 3 * whole.trained_prompts + whole.prompts
    found = pace.seconds(config, sizes, MODEL, Pace(0.5, 0.25))
    assert found == pytest.approx(pace.OVERHEAD + 0.5 * images + 0.25 * prompts)
    measured = config.model_copy(update={"references": "all"})
    assert pace.seconds(measured, sizes, MODEL, Pace(0.5, 0.0)) - pace.seconds(
        config, sizes, MODEL, Pace(0.5, 0.0)
    ) == pytest.approx(0.5 * references.work(measured, sizes).forward)


def test_an_assumed_pace_is_operations_at_a_rate() -> None:
    assert pace.assumed(MODEL, 1e9) == Pace(2.0, 0.5)
    work = Work(trained=10, forward=5, trained_prompts=4, prompts=1)
    assert work.operations(MODEL) == 2e9 * 35 + 5e8 * 13


def test_a_measured_pace_grows_with_the_picture(toy: str) -> None:
    clip = zoo.load(toy)
    found = pace.measured(clip, prompts=True)
    assert 0 < found.image < 1
    assert 0 < found.text < 1
    assert pace.measured(clip, prompts=False).text == 0.0


def test_a_dry_run_says_minutes_and_disk(toy: str, photos: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=gcl", "device=cpu"]
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = Plan.of(configured(*words[1:], "memory.budget=200", "train.batch_size=32", "train.epochs=auto"))
    model = costs(toy)
    assert model is not None
    assert found["disk_bytes"] == round(estimate.disk_bytes(plan.config, model, 3))
    assert 60 * found["minutes"] > pace.OVERHEAD - 0.5
    assert main([*words, "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "less than a minute (timed on blank images on this machine)" in last
    assert " MB of disk at most; nothing was trained" in last


def test_weights_that_are_not_here_are_assumed(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "products", lambda device, precision: 1e12)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = configured(f"data={photos}", "model=ViT-bigG-14:laion2b_s39b_b160k", "method=ncm")
    found = pace.of_plan(Plan.of(config))
    assert found is not None
    assert not found.measured
    assert "(from its operations)" in found.words()
    model = costs("ViT-bigG-14:laion2b_s39b_b160k")
    assert model is not None
    assert found.seconds > pace.OVERHEAD + 36 * model.image_flops / 1e12


def test_a_model_that_is_not_known_has_no_estimate(photos: str) -> None:
    config = configured(f"data={photos}", "model=hf-hub:nobody/nothing", "method=ncm")
    assert pace.of_plan(Plan.of(config)) is None
