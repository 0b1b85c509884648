"""Learning a task without a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.errors import RunError
from everclip.models import zoo
from everclip.system.progress import Progress
from everclip.training.context import Context
from everclip.training.learn import learn
from everclip.training.plan import Plan
from everclip.training.recorder import Recorder
from tests.pictures import image_folder
from tests.running import configured, logged, run


def test_nothing_takes_a_gradient_when_a_phase_begins(
    toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever trained in the phase before; with a journal that keeps nothing, as an update has."""
    words = (f"data={photos}", f"model={toy}", "method=co2l", "method.probe_epochs=1", "scenario.tasks=3")
    plan = Plan.of(configured(*words, "train.epochs=1", "device=cpu"))
    clip, method = zoo.load(toy), plan.method
    loader = Loader(Pixels(plan.data.train.store, clip.eval_transform, clip.image_size), 8, "shift_flip", 0)
    context = Context(plan, clip, method, plan.empty_memory(), loader, Recorder(plan.tasks), Progress())
    begun: list[bool] = []
    monkeypatch.setattr(
        method,
        "begin_phase",
        lambda clip, phase: begun.append(any(p.requires_grad for p in clip.parameters())),
    )
    learn(context, plan.tasks[0])
    assert begun == [False, False]
    assert context.record.optimizer_steps > 0


def test_a_memory_that_ranks_leaves_out_what_training_did_not_read(tmp_path: Path, toy: str) -> None:
    root = image_folder(tmp_path / "photos", {"train": 4, "test": 1}, classes=2)
    for name in ("red/0.png", "red/1.png", "green/3.png"):
        (root / "train" / name).write_bytes(b"no picture")
    words = (f"data=imagefolder:{root}", f"model={toy}", "method=finetune", "memory.policy=herding")
    one = (
        "scenario.tasks=1",
        "train.epochs=none",
        "train.steps=1",
        "train.batch_size=2",
        "loader.cache_mb=0",
    )
    results = run(tmp_path / "run", *words, *one)
    assert sorted(results["skipped_images"]) == ["train/green/3.png", "train/red/0.png", "train/red/1.png"]
    (stage,) = (line for line in logged(tmp_path / "run") if line["event"] == "stage")
    assert stage["memory"]["count"] == 5


@pytest.mark.parametrize("method", ["finetune", "cmoa"])
def test_a_task_without_a_readable_image_is_not_trained_on_exemplars(
    tmp_path: Path, toy: str, method: str
) -> None:
    root = image_folder(tmp_path / "photos", {"train": 3, "test": 1}, classes=4)
    for path in (*(root / "train" / "blue").iterdir(), *(root / "train" / "yellow").iterdir()):
        path.write_bytes(b"no picture")
    words = (f"data=imagefolder:{root}", f"model={toy}", f"method={method}", "scenario.tasks=2")
    with pytest.raises(RunError, match="not one training image of task 2 can be read"):
        run(tmp_path / "run", *words, 'scenario.order=["red", "green", "blue", "yellow"]')
    steps = [line["stage"] for line in logged(tmp_path / "run") if line["event"] == "step"]
    assert steps
    assert {*steps} == {0}
