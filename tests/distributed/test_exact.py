"""Two processes give what one gives: every loss, and whole runs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import losses
from tests.distributed.processes import ROOT, work
from tests.pictures import image_folder
from tests.running import run

WORDS = [
    "scenario.tasks=2",
    "train.epochs=2",
    "train.batch_size=9",
    "train.augment=shift_flip",
    "train.lr=1e-4",
    "references=all",
]
FORMS = {
    "gdro": [],
    "gcl": [],
    "gcl broken": ["loader.cache_mb=0"],
    "gcl light": ["distributed.gather=light", "method.temperature=per_sample"],
    "gdro light": ["distributed.gather=light", "train.captions=random"],
    "gdro shard": ["distributed.shard=true", "train.clip_norm=0.05"],
}


REFUSED = {
    "method=zscl": "method=zscl with these options needs more from the towers than the batch",
    "method=cmoa": "2 processes cannot share: start one process, or use another method",
    "method=clip distributed.gather=light": "the loss of method=clip with these options has no light form",
    "method=gcl distributed.gather=light method.negatives=multi_positive": "use distributed.gather=gradient",
    "method=ewc distributed.shard=true": "method=ewc reads the towers' weights at each step",
    "method=gcl distributed.shard=true distributed.gather=light": "which distributed.gather=light does not give",
    "method=gcl distributed.shard=true tune=lora:2": "tune=lora:2 trains a few weights",
    "method=gcl distributed.shard=true train.accumulate=2": "which train.accumulate does not give",
    "method=gcl train.patch_dropout=0.5": "use train.patch_dropout=0, or start one process",
}
"""What several processes cannot do, and what they say."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures of which some cannot be read: in training images and test images, one beside the other."""
    root = image_folder(tmp_path_factory.mktemp("broken"), {"train": 4, "test": 2})
    for name in ("train/blue/1.png", "train/blue/2.png", "train/red/0.png", "test/green/1.png"):
        (root / name).write_bytes(b"no picture")
    return f"imagefolder:{root}"


def words(form: str, toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", f"method={form.split()[0]}", *WORDS, *FORMS[form]]


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, toy: str, photos: str, broken: str
) -> tuple[Path, list[Any]]:
    """A folder with a run of two processes for each form, and what their jobs have said."""
    out = tmp_path_factory.mktemp("two")
    data = {form: broken if "broken" in form else photos for form in FORMS}
    jobs = [["run", str(out / form), *words(form, toy, data[form])] for form in FORMS]
    base = [f"data={photos}", f"model={toy}", *WORDS]
    wrong = [["refused", str(out / "wrong"), *base, *more.split()] for more in REFUSED]
    return out, work(2, ["losses"], *jobs, *wrong)


def test_every_loss_is_among_the_cases() -> None:
    """That is every public function of ``losses/`` that gives a scalar."""
    scalars = set()
    for path in (ROOT / "src" / "everclip" / "losses").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.FunctionDef)
                and node.returns
                and 'Tensor, ""' in ast.unparse(node.returns).replace("'", '"')
            ):
                scalars.add(node.name)
    assert len(scalars) >= 10
    assert scalars <= set(losses.CASES)


@pytest.mark.slow
def test_losses(two: tuple[Path, list[Any]]) -> None:
    shared, alone = two[1][0], losses.gradients()
    assert shared.keys() == alone.keys()
    for name, values in alone.items():
        assert shared[name] == pytest.approx(values, rel=1e-5, abs=1e-9), name
        assert max(map(abs, values)) > 1e-3, f"{name} has a gradient"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_whole_runs(
    two: tuple[Path, list[Any]], tmp_path: Path, toy: str, photos: str, broken: str, form: str
) -> None:
    one = run(tmp_path / "one", *words(form, toy, broken if "broken" in form else photos))
    assert len(one["skipped_images"]) == 4 * ("broken" in form)
    assert one["frozen_features"] is not None
    # how far the keys' bias is off depends on the processor, sharded or not
    same(one, two[1][1 + [*FORMS].index(form)], tmp_path / "one", two[0] / form, keys=10)


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused(two: tuple[Path, list[Any]]) -> None:
    found = two[1][1 + len(FORMS) :]
    for message, expected in zip(found, REFUSED.values(), strict=True):
        assert expected in message
    assert not (two[0] / "wrong" / "results.json").exists()


def same(
    one: dict[str, Any],
    two: dict[str, Any],
    alone: Path,
    shared: Path,
    within: float = 1e-5,
    keys: float = 1.0,
    heads: float | None = None,
    logged: float | None = None,
) -> None:
    """Fails unless two finished runs have learned the same, ``within`` 1e-5.

    Args:
        heads: the bound for a method's head, where that is not twice ``within``.
        logged: the bound for losses and, times ten, for the norm of the gradient, where that is not ``within``.
        keys: times that bound for the keys' bias. It moves no softmax, so what it learns is rounding, of which Adam
            makes a step.
    """
    exact = ("matrix", "test_counts", "optimizer_steps", "samples_seen", "memory_bytes", "skipped_images")
    for key in (*exact, "frozen_features_after_stage", "frozen_features_methods"):
        assert one[key] == two[key], key
    steps = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, shared)
    ]
    assert len(steps[0]) == len(steps[1])
    near = logged or within
    for mine, theirs in zip(*steps, strict=True):
        assert mine["event"] == theirs["event"]
        if mine["event"] == "step":
            for key in ("loss", "diagnostics"):
                assert theirs[key] == pytest.approx(mine[key], rel=near, abs=near)
            assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=10 * near, abs=near)
    for stage in sorted(path.name for path in (alone / "checkpoints").glob("stage-*")):
        mine, theirs = (folder / "checkpoints" / stage for folder in (alone, shared))
        weights = [load_file(folder / "open_clip_model.safetensors") for folder in (mine, theirs)]
        for name, value in weights[0].items():
            other = weights[1][name]
            if name.endswith("in_proj_bias") and keys > 1:
                (value, key), (other, second) = (
                    (torch.cat(b.chunk(3)[::2]), b.chunk(3)[1]) for b in (value, other)
                )
                assert torch.allclose(key, second, rtol=keys * within, atol=keys * within), name
            assert torch.allclose(value, other, rtol=within, atol=within), name
        states = [torch.load(folder / "state.pt", weights_only=True) for folder in (mine, theirs)]
        assert states[0]["memory"] == states[1]["memory"]
        alike(states[0]["method"], states[1]["method"], 2 * within, heads or 2 * within)


def alike(one: Any, two: Any, within: float, heads: float) -> None:
    """Fails unless nested states are the same, ids exactly and numbers nearly."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            alike(one[key], two[key], heads if str(key).startswith("head.") else within, heads)
    elif isinstance(one, torch.Tensor):
        assert one.shape == two.shape
        if one.is_floating_point():
            assert torch.allclose(one, two, rtol=within, atol=within)
        else:
            assert torch.equal(one, two)
    elif isinstance(one, float):  # such as a strength that the sums have chosen
        assert two == pytest.approx(one, rel=within)
    else:
        assert one == two


def test_processes_with_room_and_without_keep_activations_alike(
    tmp_path: Path, toy: str, photos: str
) -> None:
    """One that keeps them waits for the others at each epoch."""
    kept = ["tune=top:1", "cache.trunk=auto", "train.augment=none", "cache.ram_mb=0"]
    tokens = [f"data={photos}", f"model={toy}", "method=gcl", "scenario.tasks=2", *kept]
    (found,) = work(2, ["uneven", str(tmp_path / "two"), *tokens])
    assert found["last"] == run(tmp_path / "one", *tokens)["last"]
    assert "computed again each time instead" in (tmp_path / "two" / "run.log").read_text()
