"""everclip merge: weights between two models, and the choice of the share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everclip.cli.export import drawn
from everclip.inference import merge
from everclip.inference.merge import Tried, best
from everclip.inference.model import open_model
from everclip.models import zoo
from everclip.serving.current import Current, Source
from tests.cli.conftest import Say
from tests.learned import held_out, learned, unlearned
from tests.toy import toy_clip

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def run(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "run", toy, photos, "method=finetune", "train.lr=0.003")


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(str(folder).removeprefix("local-dir:")) / WEIGHTS)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("stage-*"))


def test_every_weight_is_between_both(run: Path, toy: str, tmp_path: Path, say: Say) -> None:
    code, out, err = say("merge", run, "--with", "zero-shot", "--alpha", "0.25", "-o", tmp_path / "m")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path}/m: 0.25 of {run} and 0.75 of {toy} (given), 6 classes\n"
    before, after, mixed = weights(toy), weights(newest(run)), weights(tmp_path / "m")
    assert list(mixed) == list(after)
    moved = 0
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name])
        moved += not torch.equal(before[name], after[name])
    assert moved > 20
    model, learned_one = open_model(str(tmp_path / "m")), open_model(str(run))
    assert (model.names, model.templates) == (learned_one.names, learned_one.templates)
    assert json.loads((tmp_path / "m" / "everclip.json").read_text())["settings"]["model"] == toy


def test_a_server_tells_two_shares_apart(run: Path, tmp_path: Path, say: Say) -> None:
    """Only their weights differ, not their cards."""
    current = tmp_path / "current"
    for name, alpha in (("m1", 0.25), ("m2", 0.75)):
        assert say("merge", run, "--with", "zero-shot", "--alpha", alpha, "-o", tmp_path / name)[0] == 0
    current.symlink_to("m1")
    served = Current(Source(str(current)), [].append)
    current.unlink()
    current.symlink_to("m2")
    served.look()
    assert served.now.name == "m2"


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_are_the_models_themselves(
    run: Path, toy: str, tmp_path: Path, say: Say, alpha: int
) -> None:
    assert say("merge", run, "--with", "zero-shot", "--alpha", alpha, "-o", tmp_path / "m")[0] == 0
    end = weights(newest(run) if alpha else toy)
    assert all(torch.equal(value, end[name]) for name, value in weights(tmp_path / "m").items())
    clip = zoo.load(f"local-dir:{newest(run)}" if alpha else toy)
    model = open_model(str(tmp_path / "m"))
    wanted = clip.encode_image(drawn(32)) @ clip.class_embeddings(model.names, model.templates).T
    np.testing.assert_allclose(
        model.logits(drawn(32)), (wanted * clip.logit_scale.exp()).detach().numpy(), atol=1e-4
    )


@pytest.mark.slow
def test_the_share_is_chosen_on_held_out_images(run: Path, tmp_path: Path, say: Say) -> None:
    own, other = held_out(tmp_path / "held"), unlearned(tmp_path / "other")
    code, out, err = say(
        "merge", run, "--with", "zero-shot", "--validate", own, "--validate", other, "-o", tmp_path / "m", "--json"
    )  # fmt: skip
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert [row["alpha"] for row in result["tried"]] == [step / 10 for step in range(11)]
    assert result["data"] == [own, other]
    top = max(row["mean"] for row in result["tried"])
    assert next(row["mean"] for row in result["tried"] if row["alpha"] == result["alpha"]) == top
    for row in result["tried"]:
        assert row["mean"] == pytest.approx(sum(row["accuracy"]) / 2)
    # and what it says of the chosen one is what evaluate says of the folder
    chosen = next(row for row in result["tried"] if row["alpha"] == result["alpha"])
    for data, accuracy in zip((own, other), chosen["accuracy"], strict=True):
        evaluated = json.loads(say("evaluate", tmp_path / "m", "--data", data, "--json")[1])
        assert evaluated["accuracy"] == pytest.approx(accuracy)


def test_of_equal_shares_the_middle_one_wins() -> None:
    def tried(*accuracies: float) -> float:
        return best([Tried(a, (value,)) for a, value in zip(merge.GRID, accuracies, strict=True)]).alpha

    assert tried(*[0.5] * 11) == 0.5
    assert tried(*[0.5] * 10, 0.6) == 1.0
    assert tried(0.6, *[0.5] * 7, 0.6, 0.5, 0.5) == 0.8


def test_the_table_marks_the_chosen_share(run: Path, tmp_path: Path, say: Say) -> None:
    out = say(
        "merge", run, "--with", "zero-shot", "--validate", held_out(tmp_path / "held", 1), "-o", tmp_path / "m"
    )[1]  # fmt: skip
    assert out.count(" * ") == 1
    assert "(chosen), 6 classes" in out.splitlines()[-1]


def test_two_runs_with_different_classes(run: Path, toy: str, tmp_path: Path, say: Say) -> None:
    other = unlearned(tmp_path / "other")
    second = learned(tmp_path / "second", toy, other, "method=gdro", "scenario.tasks=1", "memory.budget=0")
    assert say("merge", run, "--with", second, "--alpha", "0.5", "-o", tmp_path / "both")[0] == 0
    names = open_model(str(run)).names + open_model(str(second)).names
    assert open_model(str(tmp_path / "both")).names == names
    one, two, both = (weights(folder) for folder in (newest(run), newest(second), tmp_path / "both"))
    assert all(torch.allclose(value, (one[n] + two[n]) / 2, atol=1e-6) for n, value in both.items())
    result = json.loads(say("evaluate", tmp_path / "both", "--data", other, "--json")[1])
    assert result["label_set"] == 8
    code, out, err = say("merge", run, "--with", second, "--validate", other, "-o", tmp_path / "own")
    assert (code, out) == (2, "")
    assert err == f"error: --validate {other} is the data of {second} itself: give other images\n"
    # a merged folder can be merged again
    assert say("merge", tmp_path / "both", "--with", toy, "--alpha", "0.9", "-o", tmp_path / "again")[0] == 0


def test_a_run_with_a_frozen_part_that_was_kept(toy: str, photos: str, tmp_path: Path, say: Say) -> None:
    run = learned(tmp_path / "run", toy, photos, "method=gcl", "tune=top:1", "train.augment=none")
    assert open_model(str(run)).clip.trunk is not None
    assert say("merge", run, "--with", "zero-shot", "--alpha", "0.5", "-o", tmp_path / "m")[0] == 0
    before, after = weights(toy), weights(newest(run))
    for name, value in weights(tmp_path / "m").items():
        torch.testing.assert_close(value, (before[name] + after[name]) / 2)


def test_the_mean_that_is_subtracted_is_between_both(toy: str, photos: str, tmp_path: Path, say: Say) -> None:
    one, two, plain = (
        learned(tmp_path / name, toy, photos, "method=gdro", f"scenario.tasks={tasks}", f"center={center}")
        for name, tasks, center in (("one", 2, "true"), ("two", 1, "true"), ("plain", 1, "false"))
    )
    first, second = (open_model(str(run)).clip.center for run in (one, two))
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second), "the first task has other classes"
    for alpha, mean in ((0, second), (0.25, 0.25 * first + 0.75 * second), (1, first)):
        assert say("merge", one, "--with", two, "--alpha", alpha, "-o", tmp_path / f"{alpha}")[0] == 0
        found = open_model(str(tmp_path / f"{alpha}")).clip.center
        assert found is not None
        torch.testing.assert_close(found, mean, rtol=0, atol=0 if alpha in (0, 1) else 1e-6)
    for pair, words in (((one, plain), "the former"), ((plain, one), "the latter")):
        code, out, err = say("merge", pair[0], "--with", pair[1], "--alpha", "0.5", "-o", tmp_path / "none")
        assert (code, out) == (2, "")
        assert err == (
            f"error: of {pair[0]} and {pair[1]} only {words} subtracts a mean: give two runs with the same center=\n"
        )
    # before training, the model that it began with gave that mean
    assert say("merge", one, "--with", "zero-shot", "--alpha", "0", "-o", tmp_path / "start")[0] == 0
    found = open_model(str(tmp_path / "start")).clip.center
    assert found is not None
    assert torch.equal(found, first)


BAD: list[tuple[str, str]] = [
    ("{run} --with zero-shot -o {tmp}/m", "--alpha auto needs held-out images: give --validate DATA, or a number"),
    ("{run} --with zero-shot --alpha 1.5 -o {tmp}/m", '--alpha is "1.5": use a number from 0 to 1, or auto'),
    ("{run} --with zero-shot --alpha half -o {tmp}/m", '--alpha is "half": use a number from 0 to 1, or auto'),
    ("{run} --with zero-shot --alpha 0.5 -o {tmp}/full", "{tmp}/full exists: give a new or an empty folder"),
    ("{run} --with zero-shot --alpha 0.5 -o {tmp}/full/file", "{tmp}/full/file exists: give a new or an empty folder"),
    ("{run} --with zero-shot --alpha 0.5 -o {tmp}/full/file/m", "{tmp}/full/file/m cannot be written, as {tmp}/full"),
    ("{run} --with {toy2} --alpha 0.5 -o {tmp}/m", "{run} and {toy2} have different architectures: give models"),
    ("{run} --with {tmp}/no --alpha 0.5 -o {tmp}/m", 'model "{tmp}/no" is neither a folder nor a known name'),
    ("{toy} --with zero-shot --alpha 0.5 -o {tmp}/m", "{toy} has learned nothing: give a run directory or a model"),
    ("{head} --with zero-shot --alpha 0.5 -o {tmp}/m", "{head} was learned with ncm, whose classifier is more than"),
    ("{run} --with {head} --alpha 0.5 -o {tmp}/m", "{head} was learned with ncm, whose classifier is more than"),
    ("{run} --with zero-shot --validate {photos} -o {tmp}/m", "--validate {photos} is the data of {run} itself"),
    ("{run} --with zero-shot --validate imagefolder:{tmp}/no -o {tmp}/m", "data folder {tmp}/no does not exist"),
    ("{run} --alpha 0.5 -o {tmp}/m", "everclip merge needs WITH: see everclip merge --help"),
    ("{run} --with zero-shot --alpha 0.5", "everclip merge needs OUT: see everclip merge --help"),
]  # fmt: skip


@pytest.fixture(scope="module")
def head(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("heads") / "run", toy, photos, "method=ncm")


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_gives_one_line_and_leaves_nothing(
    run: Path, toy: str, photos: str, head: Path, tmp_path: Path, say: Say, line: str, message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    named = {"run": run, "toy": toy, "photos": photos, "head": head, "tmp": tmp_path}
    if "{toy2}" in line:
        named["toy2"] = f"local-dir:{_wider(tmp_path)}"
    before = sorted(tmp_path.rglob("*"))
    code, out, err = say("merge", *(part.format(**named) for part in line.split()))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message.format(**named)}")
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def _wider(tmp_path: Path) -> Path:
    """Another activation: the same names and shapes of all weights, and no model to mix with."""
    folder = toy_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
