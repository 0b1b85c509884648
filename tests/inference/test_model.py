"""Models in use: what can be opened, and that a folder is the same model as the run it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from everclip.cli.export import drawn
from everclip.data.scenario import seen
from everclip.errors import UserError
from everclip.inference.model import Deployed, is_learned, of_run, open_model, save, zero_shot
from everclip.models import zoo
from everclip.runs import card
from everclip.training.restore import open_run
from tests.learned import learned
from tests.marks import slow_after

METHODS = {
    "gdro": ("method=gdro",),
    "linear": ("method=finetune", "method.head=linear"),
    "ranpac": ("method=ranpac",),
    "icarl": ("method=icarl",),
    "memo": ("method=memo",),
    "wise_ft": ("method=wise_ft", "method.alpha=0.3"),
    "center": ("method=gcl", "center=true"),
    "domains": ("method=ncm", "scenario.kind=domain-incremental"),
    "joint": ("method=joint",),
    "kept": ("method=gdro", "tune=top:1", "train.augment=none"),
}
TEXT = {"gdro", "wise_ft", "center", "joint", "kept"}


@pytest.fixture(scope="module")
def run_of(
    toy: str, photos: str, domains: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A run of each kind of classifier, trained when first asked for."""
    root = tmp_path_factory.mktemp("runs")

    def made(kind: str) -> Path:
        out = root / kind
        return (
            out
            if out.exists()
            else learned(out, toy, domains if kind == "domains" else photos, *METHODS[kind])
        )

    return made


def logits(model: Deployed) -> np.ndarray:
    return model.logits(drawn(32)[:8])


@pytest.mark.parametrize("kind", slow_after(4, METHODS))
def test_a_run_without_its_images_and_a_folder_are_the_same_model(
    run_of: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    run = run_of(kind)
    plan, clip, stage = open_run(run)
    labels = seen(plan.tasks[: stage + 1])
    with torch.no_grad():
        reference = plan.method.classifier(clip, labels)(clip.normalise(drawn(32)[:8])).double().numpy()

    model = open_model(str(run))
    assert model.names == tuple(plan.prompts.names[label] for label in labels)
    assert model.reads_text == (kind in TEXT)
    assert model.plan is not None
    assert not len(model.plan.tasks[0].train), "no training image was listed"
    np.testing.assert_array_equal(logits(model), reference * model.to_logits)
    assert logits(of_run(run)).tolist() == logits(model).tolist()

    save(model, tmp_path)
    again = open_model(str(tmp_path))
    assert again.names == model.names
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-5)
    assert (tmp_path / card.METHOD_FILE).exists() == (kind not in TEXT)
    written = json.loads((tmp_path / card.FILE).read_text())
    assert written["classifier"] == ("text" if kind in TEXT else "method")
    assert "out" not in written["settings"]


def test_a_run_is_opened_without_its_data(toy: str, photos: str, tmp_path: Path) -> None:
    data = shutil.copytree(photos.removeprefix("imagefolder:"), tmp_path / "data")
    run = learned(tmp_path / "run", toy, f"imagefolder:{data}", "method=finetune", "method.head=linear")
    before = logits(open_model(str(run)))
    shutil.rmtree(data)
    assert logits(open_model(str(run))).tolist() == before.tolist()
    with pytest.raises(UserError, match="does not exist"):
        of_run(run)
    for stage in (run / "checkpoints").glob("stage-*"):  # as of a run of an older version
        (stage / card.FILE).unlink()
    with pytest.raises(UserError):
        open_model(str(run))


def test_logits_are_scores_of_a_softmax(run_of: Callable[[str], Path], toy: str) -> None:
    scale = zoo.load(toy).logit_scale.exp().item()
    assert open_model(str(run_of("ranpac"))).to_logits == pytest.approx(scale)
    assert open_model(str(run_of("icarl"))).to_logits == pytest.approx(scale)
    assert open_model(str(run_of("linear"))).to_logits == 1.0
    text = open_model(str(run_of("gdro")))
    assert text.to_logits == pytest.approx(text.clip.logit_scale.exp().item())


def test_any_model_with_classes(toy: str) -> None:
    model = open_model(toy, ["a cat", "a dog"], templates=["{} it is"])
    clip = zoo.load(toy)
    rows = clip.encode_text(["a cat it is", "a dog it is"])
    wanted = clip.encode_image(drawn(32)[:8]) @ rows.T * clip.logit_scale.exp()
    np.testing.assert_allclose(logits(model), wanted.detach().numpy(), atol=1e-4)
    assert not is_learned(toy)
    asked = zero_shot("x", clip, ["a cat", "a dog"], ["{} it is"])
    assert logits(asked).tolist() == logits(model).tolist()


def test_some_of_the_learned_classes(run_of: Callable[[str], Path]) -> None:
    model = open_model(str(run_of("linear")))
    some = open_model(str(run_of("linear")), ["blue", "red"])
    columns = [model.names.index(name) for name in some.names]
    assert set(some.names) == {"red", "blue"}
    np.testing.assert_allclose(logits(some), logits(model)[:, columns], atol=1e-5)


@pytest.fixture(scope="module")
def folder(run_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a method's state."""
    path = tmp_path_factory.mktemp("folder")
    save(open_model(str(run_of("linear"))), path)
    return path


def change(key: str, value: object) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        content = json.loads((path / card.FILE).read_text())
        (path / card.FILE).write_text(json.dumps(content | {key: value}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / card.FILE).write_text("{"), r"everclip.json cannot be read \(no valid JSON"),
        (lambda path: (path / card.FILE).write_text("[" * 20_000), r"everclip.json cannot be read \(lists or tables"),
        (lambda path: (path / card.FILE).write_bytes(b"\xff\xfe\xff"), r"everclip.json cannot be read \(no valid JSON"),
        (change("format", 2), r"everclip.json is damaged or from another version \(format: Input should be 1\)"),
        (change("classes", ["a"] * 6), r'classes 1 and 2 of .*everclip.json are both named "a"'),
        (change("classes", ["", *"abcde"]), r"class 1 of .*everclip.json has an empty name"),
        (change("classes", ["\x1b[2J", *"abcde"]), r'class 1 of .*everclip.json is named "\\x1b\[2J"'),
        (change("tasks", [{"name": "\x9b0m", "labels": [0]}]), r'everclip.json has the text "\\x9b0m"'),
        (change("templates", ["a photo"]), r'template 1 of .*everclip.json is "a photo": use "{}" once'),
        (change("templates", ["\u202e{}"]), r'template 1 of .*everclip.json cannot be printed \("\\u202e{}"'),
        (change("settings", {"model": "\x9b2J"}), r'everclip.json has the text "\\x9b2J"'),
        (change("\x1b[2J", 1), r"\\x1b\[2J: Extra inputs are not permitted"),
        (change("classes", ["a"]), r"a label is not an index of a class"),
        (change("colour", 1), r"colour: Extra inputs are not permitted"),
        (change("tasks", []), r"tasks: List should have at least 1 item"),
        (change("settings", {"method": {"name": "gdor"}}), r'unknown method "gdor"'),
        (change("settings", {"model": 5}), r"everclip.json is damaged or from another version \(model: Input should"),
        (change("settings", {"method": {"name": "ncm"}}), r"method.pt does not fit everclip.json beside it"),
        (lambda path: (path / card.METHOD_FILE).write_bytes(b"x"), r"method.pt cannot be read"),
        (lambda path: (path / card.METHOD_FILE).unlink(), r"method.pt cannot be read \(No such file"),
        (lambda path: (path / "open_clip_model.safetensors").write_bytes(b"x"), r"cannot be loaded from"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    spoil(broken)
    with pytest.raises(UserError, match=message) as error:
        open_model(str(broken))
    assert str(error.value).isprintable()


def test_what_cannot_be_opened(run_of: Callable[[str], Path], toy: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for spec, classes, message in (
        (str(tmp_path / "file"), None, "is a file: give a run directory, a model folder or a model's name"),
        (toy, None, "comes without classes: give --classes FILE, one name per line"),
        (toy, ["a", "a"], 'are both named "a"'),
        (str(tmp_path / "no"), ["a"], "is neither a folder nor a known name"),
        (
            str(run_of("gdro")),
            ["reed"],
            '"reed" is not one of the 6 classes that .* has learned; did you mean "red"',
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_model(spec, classes)
    with pytest.raises(UserError, match="--image-size is for models that have learned nothing"):
        open_model(str(run_of("gdro")), image_size=64)
