"""Whole runs on kept activations: as without them, to the error of fp16; stopped and resumed bit for bit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from everclip.cli.app import main
from everclip.config import Config
from everclip.data.cache import activations
from everclip.data.cache.activations import Activations
from everclip.data.cache.rows import RECORD, Memory, Shared, Spilled
from everclip.data.loader import Loader
from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.training import activation_cache, loop
from everclip.training.cache_size import Amount
from everclip.training.plan import Plan
from everclip.training.restore import open_run
from tests.complaints import complaint
from tests.marks import slow_after
from tests.methods.stages import TIMM, clip_with
from tests.pictures import image_folder
from tests.running import configured, logged, run, run_for, timeless
from tests.training.test_checkpointer import same, state

TRAINED = ["gcl", "gdro", "finetune", "memo", "foster", "der_expand", "lwf", "icarl"]
STILL = ["ncm", "ridge method.feature=pooled", "zero_shot", "slda"]
ON = ("cache.trunk=on", "train.augment=none", "tune=top:1")


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of a model with an EfficientNet, and a timm one, as its image tower."""
    folder = tmp_path_factory.mktemp("conv") / "model"
    return clip_with(folder, **TIMM, timm_model_name="test_efficientnet")


@pytest.fixture
def words(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", "scenario.tasks=2", "train.lr=1e-3", "train.lr_text=1e-3"]


@pytest.fixture
def model(request: pytest.FixtureRequest, toy: str, conv: str) -> str:
    return {"ViT": toy, "EfficientNet": conv}[request.param]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Activations]:
    """The caches that runs make, for a look at them."""
    made: list[Activations] = []
    make = activation_cache.loader

    def noting(*given: Any) -> Loader:
        loader = make(*given)
        made.extend([loader.activations] if loader.activations is not None else [])
        return loader

    monkeypatch.setattr(loop.activation_cache, "loader", noting)
    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of pictures that trunks are given together."""
    counts: list[int] = []
    normalise = Clip.normalise

    def counting(clip: Clip, images: Tensor) -> Tensor:
        counts.extend([len(images)] if images.dtype == torch.uint8 else [])  # else they are rows
        return normalise(clip, images)

    monkeypatch.setattr(Clip, "normalise", counting)
    return counts


def weights(out: Path) -> dict[str, Tensor]:
    return zoo.load(str(out)).model.state_dict()


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    return torch.cat(
        [(after[name] - before[name]).flatten() for name in before if before[name].is_floating_point()]
    )


def refusal(*words: str) -> str:
    """What is said of a config that asks for a cache."""
    plan = Plan.of(configured(*words))
    return complaint(activation_cache.blocks_above, plan.config, plan.method)


def blocks(*words: str) -> int | None:
    plan = Plan.of(configured(*words))
    return activation_cache.blocks_above(plan.config, plan.method)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ViT", "EfficientNet"], indirect=True)
@pytest.mark.parametrize("method", TRAINED)
def test_training_is_as_without(method: str, model: str, tmp_path: Path, words: list[str]) -> None:
    """AdamW makes a full step of a gradient near 0, so that what fp16 rounds off shows there, and nowhere else.

    (With some seeds iCaRL's weights differ by up to 0.25 on EfficientNet: it may take other exemplars where two are
    nearly as good, which was not traced.)
    """
    tokens = [word for word in words if not word.startswith("model=")]
    tokens += [f"model={model}", f"method={method}", "train.augment=none", "tune=top:1", "seed=1"]
    found = {trunk: run(tmp_path / trunk, *tokens, f"cache.trunk={trunk}") for trunk in ("off", "on")}
    before = zoo.load(model).model.state_dict()
    without, with_ = (weights(tmp_path / trunk) for trunk in ("off", "on"))
    change = moved(before, without)
    assert change.norm() > 0
    assert (moved(before, with_) - change).norm() / change.norm() < 0.1
    for name, value in before.items():
        assert torch.equal(without[name], value) == torch.equal(with_[name], value), f"what is frozen: {name}"
    for key in ("last", "average", "zero_shot"):
        assert found["on"][key] == pytest.approx(found["off"][key], abs=0.1)
    losses = [
        [sum(line["loss"].values()) for line in logged(tmp_path / trunk) if line["event"] == "step"]
        for trunk in ("off", "on")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2, abs=2e-2)
    assert found["on"]["cache_bytes"] > found["off"]["cache_bytes"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ViT", "EfficientNet"], indirect=True)
@pytest.mark.parametrize("method", ["gcl", "der_expand", "zscl method.emoji_count=9"])
def test_training_on_fp32_rows_is_as_without_to_the_last_digits(
    method: str, model: str, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what differs on fp16 rows is their rounding. (A bias of attention's keys has a gradient of errors alone.)"""
    monkeypatch.setattr(activation_cache, "Memory", lambda shape, exact: Memory(shape, True))
    tokens = [word for word in words if not word.startswith("model=")]
    tokens += [f"model={model}", *f"method={method}".split(), "train.augment=none", "tune=top:1"]
    for trunk in ("off", "on"):
        run(tmp_path / trunk, *tokens, f"cache.trunk={trunk}")
    before = zoo.load(model).model.state_dict()
    change = moved(before, weights(tmp_path / "off"))
    assert (moved(before, weights(tmp_path / "on")) - change).norm() / change.norm() < 2e-2


@pytest.mark.parametrize("method", STILL)
def test_methods_that_train_nothing_are_as_without(method: str, tmp_path: Path, words: list[str]) -> None:
    tokens = [*words, *f"method={method}".split()]
    without = run(tmp_path / "off", *tokens, "cache.trunk=off")
    with_ = run(tmp_path / "auto", *tokens)
    other = {"cache_bytes", "state_bytes"}
    assert {k: v for k, v in timeless(with_).items() if k not in other} == {
        k: v for k, v in timeless(without).items() if k not in other
    }
    assert with_["cache_bytes"] > without["cache_bytes"] == 0
    plan, clip, _ = open_run(tmp_path / "auto")
    assert clip.trunk is not None
    assert plan.method.capabilities.reads == ("pooled" if "pooled" in method else "features")


@pytest.mark.parametrize("method", ["co2l", "cassle method.objective=sogclr", "gdro"])
def test_fixed_views(method: str, tmp_path: Path, words: list[str], kept: list[Activations]) -> None:
    probe = ["method.probe_epochs=1"] if "gdro" not in method else []
    tokens = [*words, *f"method={method}".split(), *probe, "tune=top:1", "cache.views=2", "cache.trunk=on"]
    whole = run(tmp_path / "whole", *tokens)
    assert kept[0].views == 2
    assert whole["optimizer_steps"] > 2
    assert run_for(tmp_path / "parts", 3, *tokens) is None
    assert timeless(run(tmp_path / "parts", *tokens)) == timeless(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    ["gdro", "memo", "der_expand", "wise_ft method.anchor=mean", "zscl method.emoji_count=9", "ncm"],
)
def test_stopped_and_resumed_equals_not_stopped(variant: str, tmp_path: Path, words: list[str]) -> None:
    """Rows are computed anew, in other batches than the first time, and are the same to the last bit."""
    tokens = [*words, *f"method={variant}".split(), *ON]
    whole = run(tmp_path / "whole", *tokens)
    if whole["optimizer_steps"]:
        assert run_for(tmp_path / "parts", whole["optimizer_steps"] - 2, *tokens) is None
    parts = run(tmp_path / "parts", *tokens)
    assert timeless(parts) == timeless(whole)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["cassle", "cclis", "zscl method.reference_images=memory", "dark_er", "memo"]
)
def test_bf16_on_kept_views(method: str, tmp_path: Path, words: list[str]) -> None:
    """A CPU's autocast takes no fp16, in which rows are kept. Phases of a length of their own stand beside steps."""
    tokens = [*words, *f"method={method}".split(), "tune=top:1", "cache.trunk=on", "cache.views=2"]
    results = run(tmp_path / "run", *tokens, "train.precision=bf16", "train.steps=2", "train.epochs=none")
    assert results["cache_bytes"] > 0
    assert results["precision"] == "bf16"


def test_bf16_computes_the_rows_that_train_and_no_others(
    tmp_path: Path, words: list[str], kept: list[Activations]
) -> None:
    tokens = [*words, *ON, "method=gdro", "train.steps=1", "train.epochs=none"]
    for kind in ("fp32", "bf16"):
        run(tmp_path / kind, *tokens, f"train.precision={kind}")
    found: list[list[Tensor]] = []
    for cache in kept:
        for part in (*cache.train, *cache.test):
            cache.fill(part)
        both = (cache.train, cache.test)
        found.append([torch.cat([cache.load(part)[0].float() for part in parts]) for parts in both])
    (train, test), (train_bf16, test_bf16) = found
    assert torch.equal(test, test_bf16)
    assert 1e-4 < (train_bf16 - train).norm() / train.norm() < 2e-2


def test_bf16_above_kept_rows_is_as_without(tmp_path: Path, words: list[str]) -> None:
    tokens = [*words, "method=gdro", "train.precision=bf16", "train.augment=none", "tune=top:1"]
    losses = []
    for trunk in ("off", "on"):
        run(tmp_path / trunk, *tokens, f"cache.trunk={trunk}")
        lines = logged(tmp_path / trunk)
        losses.append([sum(line["loss"].values()) for line in lines if line["event"] == "step"])
    assert losses[1] == pytest.approx(losses[0], rel=3e-2, abs=3e-2)


def test_wherever_rows_are_kept_a_run_is_the_same(
    tmp_path: Path, words: list[str], kept: list[Activations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    tokens = [*words, *ON]
    places = {
        "memory": [],
        "file": ["cache.ram_mb=0"],
        "shared": ["cache.shared=true"],
        "again": ["cache.shared=true"],
    }
    for name, more in places.items():
        run(tmp_path / name, *tokens, "method=gcl", *more)
    assert [type(cache.rows) for cache in kept] == [Memory, Spilled, Shared, Shared]
    expected = weights(tmp_path / "memory")
    for name in places:
        assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / name).items()), name
    assert len(kept[3].rows) == len(kept[2].rows) == 36
    folders = list((tmp_path / "cache" / "activations").iterdir())
    run(tmp_path / "other", *tokens, "cache.shared=true", "method=gdro", "seed=3")
    assert list((tmp_path / "cache" / "activations").iterdir()) == folders, (
        "another method and seed use the same"
    )


RIDGE = ["method=ridge", "references=none"]
ONLINE = [*RIDGE, "scenario.kind=online", "scenario.every=6"]
PARTS = [*RIDGE, "scenario.kind=data-incremental", "scenario.by=parts"]


def test_where_a_class_comes_in_many_tasks_each_image_is_computed_once(
    tmp_path: Path, words: list[str], encoded: list[int]
) -> None:
    for number, cut in enumerate((RIDGE, ONLINE, PARTS), 1):
        run(tmp_path / str(number), *words, *cut)
        assert sum(encoded) == number * (24 + 12 + 2), "and two blank ones, for sizes"


def test_a_task_that_does_not_train_computes_no_views(
    tmp_path: Path, words: list[str], encoded: list[int]
) -> None:
    views = ["tune=top:1", "cache.views=2", "train.epochs=4"]
    run(tmp_path / "run", *words, "method=ncm", "method.adapt=clip", *views, "references=none")
    assert sum(encoded) == 3 * 12 + 12 + 12 + 2, "the first task, the second, the test images, two blank ones"


def test_a_shared_cache_serves_every_cut_into_tasks(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, kept: list[Activations]
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    for number, cut in enumerate((RIDGE, ONLINE, PARTS)):
        run(tmp_path / str(number), *words, *cut, "cache.shared=true")
    (folder,) = (tmp_path / "cache" / "activations").iterdir()
    assert len(np.fromfile(folder / "index.bin", dtype=RECORD)) == 24 + 12
    run(tmp_path / "alone", *words, *RIDGE)
    groups = [{tuple(group.ids.tolist()) for group in cache._groups} for cache in kept]
    assert groups[0] == groups[3], "whose tasks have classes of their own: those of a shared cache"


SHARING = """
import sys
import torch
from everclip.data.cache import activations
from tests.running import run
from pathlib import Path
torch.set_num_threads(1)  # as tests do: with more, the last bit is another
activations.AT_ONCE = 1  # a turn for each group of two images, so that the processes meet often
activations.GROUP = 2
print("ready", flush=True)
sys.stdin.readline()
run(Path(sys.argv[1]), *sys.argv[2:])
"""


@pytest.mark.slow
def test_processes_share_a_file_at_once(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets the rows that it would have computed alone, and none is computed twice: three views, the plain one."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(activations, "GROUP", 2)
    tokens = [*words, "tune=top:1", "cache.views=3", "train.epochs=3", "references=all"]
    methods = {"first": "method=gcl", "second": "method=finetune"}
    children = {
        name: subprocess.Popen(
            [sys.executable, "-c", SHARING, str(tmp_path / name), *tokens, method, "cache.shared=true"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, method in methods.items()
    }
    for child in children.values():
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    for child in children.values():
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
    for name, child in children.items():
        _, said = child.communicate()
        assert child.returncode == 0, said.decode()
        run(tmp_path / f"alone {name}", *tokens, methods[name])
        expected = weights(tmp_path / f"alone {name}")
        assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / name).items())
    (folder,) = (tmp_path / "cache" / "activations").iterdir()
    index = np.fromfile(folder / "index.bin", dtype=RECORD)
    assert len(index) == len({(record["id"], record["view"]) for record in index}) == 24 * 4 + 12


@pytest.mark.parametrize("change", slow_after(2, ["weights", "heads", "size", "images", "blocks"]))
def test_what_rows_depend_on_makes_another_file(
    change: str, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    tokens = [*words, "method=ncm", "cache.shared=true"]
    run(tmp_path / "first", *tokens)
    if change == "weights":
        clip = zoo.load(next(word for word in words if word.startswith("model=")).removeprefix("model="))
        with torch.no_grad():
            clip.model.visual.conv1.weight[0, 0, 0, 0] += 1e-6
        clip.save(tmp_path / "moved")
        tokens[1] = f"model=local-dir:{tmp_path / 'moved'}"
    elif change == "heads":  # the same weights, and layers that print alike
        clip = zoo.load(next(word for word in words if word.startswith("model=")).removeprefix("model="))
        clip.save(tmp_path / "heads")
        config = tmp_path / "heads" / "open_clip_config.json"
        config.write_text(config.read_text().replace('"head_width": 16', '"head_width": 32'))
        tokens[1] = f"model=local-dir:{tmp_path / 'heads'}"
    elif change == "images":
        tokens[0] = f"data=imagefolder:{image_folder(tmp_path / 'more', {'train': 5, 'test': 2})}"
    else:
        tokens += {"size": ["image_size=24"], "blocks": ["method=finetune", *ON]}[change]
        tokens = [t for t in tokens if t != "method=ncm" or change == "size"]
    run(tmp_path / "second", *tokens)
    assert len(list((tmp_path / "cache" / "activations").iterdir())) == 2


def test_rows_of_images_that_are_gone_are_freed(
    tmp_path: Path, words: list[str], kept: list[Activations]
) -> None:
    tokens = [*words, "method=finetune", *ON, "memory.budget=3", "scenario.tasks=3"]
    tokens.remove("scenario.tasks=2")
    results = run(tmp_path / "run", *tokens)
    plan, _, _ = open_run(tmp_path / "run")
    assert Amount.of(plan) == Amount(views=1, most=8 + 3 + 12, all=24 + 12)
    assert len(kept[0].rows) <= 3 + 12
    assert results["cache_bytes"] == 23 * kept[0].rows.row_bytes
    held = {key[0] for key in kept[0].rows._places}  # type: ignore[attr-defined]
    assert {sample for task in plan.tasks for sample in task.test.ids.tolist()} <= held


def test_a_checkpoint_is_plain_open_clips(tmp_path: Path, toy: str, conv: str, words: list[str]) -> None:
    for name, spec in (("vit", toy), ("conv", conv)):
        tokens = [word for word in words if not word.startswith("model=")]
        run(tmp_path / name, *tokens, f"model={spec}", "method=finetune", *ON)
        folder = max(path.parent for path in (tmp_path / name).glob("checkpoints/*/open_clip_config.json"))
        read = open_clip.create_model(f"local-dir:{folder}").state_dict()
        before = zoo.load(spec).model.state_dict()
        assert list(read) == list(before)
        changed = {key for key in before if not torch.equal(read[key], before[key])}
        assert changed
        assert not {key for key in changed if "running_" in key}, "batch norm keeps its statistics"
        lower = ("resblocks.0.", "conv1", "conv_stem", "blocks.0.", "class_embedding", "ln_pre")
        assert not {
            key for key in changed if key.startswith("visual.") and any(part in key for part in lower)
        }


def test_a_cached_run_is_opened_and_evaluated(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("der_expand", "memo method.blocks=1"):
        out = tmp_path / method[:4]
        results = run(out, *words, *f"method={method}".split(), *ON)
        plan, clip, stage = open_run(out)
        assert stage == 1
        assert clip.trunk is not None
        older = [name for name in plan.method.state_dict() if name.startswith("older.")]
        assert older
        assert not [name for name in older if "resblocks.0." in name or "conv1" in name], (
            "the trunk is not copied"
        )
        assert main(["evaluate", str(out), "--json"]) == 0
        assert f'"accuracy": {results["last"]}'[:18] in capsys.readouterr().out


def test_broken_images(tmp_path: Path, toy: str) -> None:
    root = image_folder(tmp_path / "images", {"train": 4, "test": 2})
    (root / "train/red/0.png").write_bytes(b"")
    (root / "test/blue/1.png").write_bytes(b"no picture")
    tokens = [f"data=imagefolder:{root}", f"model={toy}", "scenario.tasks=2", "method=finetune", "tune=top:1"]
    tokens.append("train.augment=none")
    found = [run(tmp_path / trunk, *tokens, f"cache.trunk={trunk}") for trunk in ("off", "on")]
    assert found[0]["skipped_images"] == found[1]["skipped_images"] == ["train/red/0.png", "test/blue/1.png"]
    assert found[0]["test_counts"] == found[1]["test_counts"]
    assert found[0]["samples_seen"] == found[1]["samples_seen"]


def test_the_size_is_said(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a", *words, "method=finetune", *ON)
    assert "activations of the frozen trunk are kept: 1.1 kB each (fp16), at most 39.2 kB in memory" in (
        capsys.readouterr().err
    )
    run(tmp_path / "b", *words, "method=ncm", "cache.ram_mb=0")
    said = capsys.readouterr().err
    assert "image features are kept: 64 bytes each (fp32), at most 1.5 kB in a file in" in said


def test_a_full_disk(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [*words, "method=finetune", "train.augment=none", "tune=top:1", "cache.ram_mb=0"]
    expected = run(tmp_path / "room", *tokens)
    monkeypatch.setattr(activation_cache, "_free", lambda folder: 1000)
    out = f"out={tmp_path / 'on'}"
    assert main(["train", *tokens, "cache.trunk=on", out, "device=cpu", "train.epochs=1"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "need 39.2 kB and" in line
    assert line.endswith("has 1.0 kB free: make room, or use cache.trunk=off")
    capsys.readouterr()
    computed = run(tmp_path / "auto", *tokens)
    assert "computed again each time" in capsys.readouterr().err
    assert computed["last"] == expected["last"]
    assert computed["cache_bytes"] == 0
    tokens.remove("train.augment=none")
    with pytest.raises(UserError, match=r"has 1\.0 kB free: make room, or use cache\.trunk=off"):
        run(tmp_path / "views", *tokens, "cache.views=2")  # else training would see other pictures


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        ("tune=top:9", "tune=top:9 but a tower has 2 blocks: use fewer"),
        ("tune=top:9 method=zero_shot", "tune=top:9 but a tower has 2 blocks: use fewer"),
        ("train.compile=true", "train.compile=true gains nothing on a CPU: leave it out"),
        (
            "train.patch_dropout=0.5 model=CONV",
            "is not a vision transformer: use train.",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_tested(
    tokens: str, line: str, tmp_path: Path, words: list[str], conv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop, "evaluate_pretrained", lambda *given: pytest.fail("the pretrained model is tested")
    )
    given = {"method": "method=gcl"} | {word.partition("=")[0]: word for word in [*words, *tokens.split()]}
    given |= {"model": f"model={conv}"} if "CONV" in tokens else {}
    with pytest.raises(UserError, match=re.escape(line)):
        run(tmp_path / "run", *given.values(), "cache.trunk=off")


def test_the_trunk_is_fp32_where_it_is_computed_anew(toy: str) -> None:
    clip = zoo.load(toy)
    clip.cut(1)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = clip.normalise(images)
    assert torch.equal(inside, clip.normalise(images))


def test_little_memory_means_a_file(
    tmp_path: Path, words: list[str], kept: list[Activations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_cache, "free_memory", lambda: 10_000)
    run(tmp_path / "run", *words, "method=finetune", *ON)
    assert isinstance(kept[0].rows, Spilled)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("method=finetune", None),
        ("method=finetune tune=top:1", None),
        ("method=finetune tune=top:1 train.augment=none", 1),
        ("method=finetune tune=top:1 cache.views=3", 1),
        ("method=finetune tune=head method.head=linear train.augment=none", 0),
        ("method=gcl tune=text train.augment=none", 0),
        ("method=gcl tune=image train.augment=none", None),
        ("method=finetune tune=lora:2 train.augment=none", None),
        ("method=finetune tune=top:1 train.augment=none cache.trunk=off", None),
        ("method=finetune tune=top:1 train.augment=none train.patch_dropout=0.5", None),
        ("method=memo tune=head train.augment=none", 1),
        ("method=icarl method.flip=true tune=top:1 train.augment=none", None),
        ("method=cmoa tune=top:1 train.augment=none", None),
        ("method=zero_shot", 0),
        ("method=ridge tune=top:1", 0),
        ("method=ncm method.adapt=gcl", None),
        ("method=ncm method.adapt=gcl tune=top:1 train.augment=none", 1),
        ("method=wise_ft method.loss=gcl tune=top:1 train.augment=none", 1),
        ("method=joint method.loss=gcl tune=top:1 train.augment=none", 1),
    ],
)
def test_auto_keeps_what_leaves_the_pictures_as_they_are(
    tokens: str, expected: int | None, words: list[str]
) -> None:
    assert blocks(*words, *tokens.split()) == expected
    if expected is None and "cache.trunk" not in tokens:
        assert "use " in refusal(*words, *tokens.split(), "cache.trunk=on")


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        ("", "tune=full trains all of it: use tune=top:K, tune=head or cache.trunk=off"),
        ("tune=lora:2", "tune=lora:2 trains all of it"),
        (
            "tune=top:1",
            "train.augment=shift_flip draws a new view each time: use train.augment=none, cache.views=4 or",
        ),
        ("tune=top:1 method=cmoa", "but method=cmoa reads the pictures or changes all blocks"),
    ],
)
def test_on_says_why_not(tokens: str, line: str, words: list[str]) -> None:
    method = () if "method" in tokens else ("method=gcl",)
    said = refusal(*words, *method, "cache.trunk=on", *tokens.split())
    assert line in said
    assert "\n" not in said


def test_views_that_would_be_none_are_refused(words: list[str]) -> None:
    tokens = [*words, "method=gcl", "tune=top:1", "train.augment=none", "cache.views=2"]
    assert "use train.augment=shift_flip, or cache.views=1" in refusal(*tokens)
    assert blocks(*words, "method=ncm", "cache.views=2", "train.augment=none") == 0


@pytest.mark.parametrize(
    ("tokens", "views", "each"),
    [
        ("train.epochs=1 memory.budget=0", 0, 1),
        ("train.epochs=4 memory.budget=0", 0, 1),
        ("train.epochs=5 memory.budget=0", 4, 5),
        ("train.epochs=1 memory.budget=all", 2, 3),
        ("train.epochs=1 memory.budget=1", 0, 1),
        ("train.epochs=3 memory.budget=all", 3, 4),
        ("train.epochs=1 memory.budget=0 cache.trunk=on", 2, 3),
        ("train.epochs=1 memory.budget=0 cache.shared=true", 2, 3),
        ("train.epochs=none train.steps=2 memory.budget=0", 0, 1),
        ("train.epochs=none train.steps=20 memory.budget=0", 4, 5),
        ("method=cassle train.epochs=2 memory.budget=0", 0, 1),
        ("method=cassle train.epochs=3 memory.budget=0", 4, 5),
        ("method=wise_ft method.loss=cassle method.anchor=mean train.epochs=3 memory.budget=0", 4, 5),
    ],
)
def test_fixed_views_are_kept_where_one_is_seen_again(
    tokens: str, views: int, each: int, words: list[str]
) -> None:
    """Never more than the epochs of a task see; 24 training images in two tasks, 12 test images."""
    method = () if "method" in tokens else ("method=gcl",)
    given = [*words, *method, "tune=top:1", "cache.views=4", *tokens.split()]
    amount = Amount.of(Plan.of(configured(*given)))
    assert (amount.views, amount.all) == (views, each * 24 + 12)


def test_without_kept_views_a_run_goes_on_bit_for_bit(
    tmp_path: Path, words: list[str], kept: list[Activations], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [*words, "method=gcl", "tune=top:1", "cache.views=4", "memory.budget=0", "train.epochs=2"]
    whole = run(tmp_path / "whole", *tokens)
    assert "kept of test images only" in capsys.readouterr().err
    assert {key[1] for key in kept[0].rows._places} == {0}  # type: ignore[attr-defined]
    assert run_for(tmp_path / "parts", whole["optimizer_steps"] - 1, *tokens) is None
    assert timeless(run(tmp_path / "parts", *tokens)) == timeless(whole)


def test_an_unknown_tower_is_left_whole_unless_it_must_not_be(tmp_path: Path, words: list[str]) -> None:
    spec = clip_with(tmp_path / "model", **TIMM, timm_model_name="test_nfnet")
    tokens = [word for word in words if not word.startswith("model=")] + [
        f"model={spec}",
        "train.augment=none",
    ]

    def cut(*more: str) -> bool:
        plan = Plan.of(configured(*tokens, *more))
        clip = zoo.load(spec)
        activation_cache.cut(clip, plan.config, plan.method)
        return clip.trunk is not None

    assert cut("method=ncm"), "whole towers need no blocks"
    with pytest.raises(UserError, match=r"cannot be cut between its blocks: use cache\.trunk=off"):
        cut("method=gcl", "tune=top:1", "cache.trunk=on")


def test_the_default_is_auto() -> None:
    assert Config().cache.trunk == "auto"
    assert (Config().cache.views, Config().cache.shared) == (1, False)
