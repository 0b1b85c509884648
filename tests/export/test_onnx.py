"""The ONNX export: what torch gives, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import everclip
from everclip.cli.export import drawn
from everclip.data.pixels import to_rgb
from everclip.data.sources.emoji import verified
from everclip.errors import UserError
from everclip.export import export
from everclip.inference.model import Deployed, open_model, zero_shot
from everclip.inference.predict import answers, expanded, files
from everclip.inference.unknown import judged
from everclip.metrics.calibration import Calibration, probabilities
from everclip.metrics.unknown import held_out
from everclip.models import zoo
from everclip.system.atomic import write_atomic
from tests.learned import learned
from tests.pictures import COLOURS, picture
from tests.toy import toy_clip

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EVERY = {
    "linear": ("method=finetune", "method.head=linear"),
    "centered": ("method=gcl", "center=true"),
    "kept": ("method=gdro", "tune=top:1", "train.augment=none"),
    "der_expand": ("method=der_expand",),
    "memo": ("method=memo",),
    "foster": ("method=foster",),
    "icarl": ("method=icarl",),
    "ncm": ("method=ncm", "method.feature=pooled"),
    "ridge": ("method=ridge",),
    "ranpac": ("method=ranpac",),
    "slda": ("method=slda",),
    "multilayer_lda": ("method=multilayer_lda",),
    "cmoa": ("method=cmoa",),
    "wise_ft": ("method=wise_ft",),
    "co2l": ("method=co2l",),
}
ALONE = """
import runpy, sys
sys.modules["torch"] = sys.modules["everclip"] = sys.modules["open_clip"] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def without_torch(folder: Path, pictures: list[Path]) -> dict[str, tuple[str, float]]:
    """What ``example.py`` says of each picture, in a process that cannot import torch."""
    code = ALONE.replace("sys.argv[0]", repr(str(folder / "example.py")))
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, pictures)], capture_output=True, text=True, check=True
    )
    first: dict[str, tuple[str, float]] = {}
    for line in found.stdout.splitlines():
        name, label, p = line.split("\t")
        first.setdefault(name, (label, float(p)))
    return first


@pytest.fixture(scope="module")
def run(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "run", toy, photos, "method=finetune", "train.epochs=3")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployed, Path]:
    """A model with a temperature, and its export."""
    temperature = Calibration(temperature=0.7, data="x", images=9, ece_before=1, ece=0, nll_before=1, nll=0)
    content = {"stage": 2, "calibration": temperature.model_dump()}
    write_atomic(run / "calibration.json", json.dumps(content))
    model, folder = open_model(str(run)), tmp_path_factory.mktemp("onnx")
    checked = export(model, "onnx", str(folder), drawn(32)).checked
    assert (checked["pictures"], checked["same_class"]) == (64, 64)
    assert checked["largest_difference_of_probabilities"] < 1e-5
    return model, folder


def test_the_graph_takes_any_batch(exported: tuple[Deployed, Path]) -> None:
    model, folder = exported
    running = session(folder)
    assert [(one.name, one.shape[1:], one.type) for one in running.get_inputs()] == [
        ("images", [3, 32, 32], "tensor(float)")
    ]
    assert json.loads(running.get_modelmeta().custom_metadata_map["classes"]) == list(model.names)
    for count in (1, 2, 5):
        pictures = drawn(32)[:count]
        inputs = model.clip.normalise(pictures).numpy()
        found = running.run(None, {"images": inputs})[0]
        np.testing.assert_allclose(found, model.logits(pictures), atol=1e-4)


def test_the_example_says_what_predict_says_without_torch(
    exported: tuple[Deployed, Path], tmp_path: Path
) -> None:
    model, folder = exported
    for number in range(200):
        image = picture(list(COLOURS.values())[number % 6], number, side=24 + number % 50)
        image = image.resize((24 + number % 90, image.height), Image.Resampling.BILINEAR)
        if number % 7 == 0:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.convert("L" if number % 5 == 0 else image.mode).save(tmp_path / f"{number:03d}.png")
    found = without_torch(folder, sorted(tmp_path.glob("*.png")))
    assert len(found) == 200
    for answer in answers(model, files(expanded([str(tmp_path)]))):
        assert answer.probabilities is not None
        label, p = found[answer.key]
        assert label == model.names[int(answer.probabilities.argmax())]
        assert p == pytest.approx(answer.probabilities.max(), abs=2e-3)


@pytest.mark.parametrize("words", [["--unknown-at"], ["--unknown-at", "5%", "photo.jpg"]])
def test_the_example_says_in_a_line_that_there_is_no_threshold(
    exported: tuple[Deployed, Path], words: list[str]
) -> None:
    command = [sys.executable, str(exported[1] / "example.py"), *words]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    rate = "".join(words[1:2])
    assert found.stderr == f"--unknown-at {rate}: preprocess.json has a threshold for no rate\n"


@pytest.mark.parametrize("mode", ["squash", "longest", "shortest"])
@pytest.mark.parametrize("interpolation", ["bilinear", "random"])
def test_the_example_prepares_pictures_as_the_model_does(
    exported: tuple[Deployed, Path], tmp_path: Path, mode: str, interpolation: str
) -> None:
    folder = toy_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": interpolation, "fill_color": 77}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = zoo.load(f"local-dir:{folder}")
    from everclip.export.onnx import EXAMPLE, preprocessing

    (tmp_path / "preprocess.json").write_text(json.dumps(preprocessing(clip)))
    (tmp_path / "labels.json").write_text("[]")
    (tmp_path / "example.py").write_bytes(EXAMPLE.read_bytes())
    example: dict[str, Any] = {"__name__": "example", "__file__": str(tmp_path / "example.py")}
    exec(compile(EXAMPLE.read_text(), "example.py", "exec"), example)
    for width, height in ((40, 40), (100, 31), (20, 90), (33, 32), (31, 33)):
        picture((200, 90, 20), width).resize((width, height)).save(tmp_path / "a.png")
        image = clip.eval_transform(Image.open(tmp_path / "a.png").convert("RGB"))
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
        np.testing.assert_allclose(example["load"](tmp_path / "a.png"), clip.normalise(pixels)[0], atol=1e-6)


@pytest.mark.parametrize("example", ["onnx", "hf"])
def test_the_examples_read_every_kind_of_picture_as_everclip_does(example: str, tmp_path: Path) -> None:
    source = (Path(everclip.__file__).parent / "assets" / "export" / f"{example}_example.py").read_text()
    function = source[source.index("def rgb(") :].split("\n\n\n")[0]
    given: dict[str, Any] = {"np": np, "Image": Image}
    exec(function, given)
    values = np.random.default_rng(0).integers(0, 256, (9, 8, 4)).astype(np.uint8)
    grey = values[..., 0]
    odd = grey.astype(np.float32) / 255
    odd[0, :3] = np.inf, -np.inf, np.nan
    for image in (
        Image.fromarray(values),
        Image.fromarray(values[..., :2]),
        Image.fromarray(values[..., :3]).convert("CMYK"),
        Image.fromarray(grey > 99),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(grey.astype(np.int32)),
        Image.fromarray(grey.astype(np.float32) / 255),
        Image.fromarray(odd),
        Image.fromarray(np.full((2, 2), np.inf, dtype=np.float32)),
    ):
        np.testing.assert_array_equal(given["rgb"](image), to_rgb(image), err_msg=image.mode)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'needs the package {package}: pip install "everclip\[onnx\]"'):
        export(open_model(str(run)), "onnx", str(tmp_path / "m"), drawn(32))
    assert list(tmp_path.iterdir()) == []


class Stubborn(nn.Module):
    """A classifier that looks at its values."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :2, 0, 0] if images.sum().item() > 0 else images[:, 1:, 0, 0]


def test_what_the_exporter_cannot_write_is_one_line(toy: str, tmp_path: Path) -> None:
    model = zero_shot("stubborn", zoo.load(toy), ["a", "b"], ["{}"])
    odd = Deployed("stubborn", model.clip, ("a", "b"), (0, 1), ("{}",), lambda labels: Stubborn())
    with pytest.raises(UserError, match=r"stubborn cannot become ONNX \(.+\): use") as error:
        export(odd, "onnx", str(tmp_path / "m"), drawn(32))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_of_classifier(toy: str, photos: str, tmp_path: Path, kind: str) -> None:
    model = open_model(str(learned(tmp_path / "run", toy, photos, *EVERY[kind])))
    checked = export(model, "onnx", str(tmp_path / "onnx"), drawn(32)).checked
    assert checked["same_class"] == checked["pictures"]
    pictures = drawn(32)[:5]
    mean, std = (
        np.array(values, dtype=np.float32)[:, None, None] for values in (model.clip.mean, model.clip.std)
    )
    inputs = (pictures.numpy().astype(np.float32) / 255 - mean) / std
    found = session(tmp_path / "onnx").run(None, {"images": inputs})[0]
    np.testing.assert_allclose(probabilities(found), probabilities(model.logits(pictures)), atol=1e-5)


@pytest.mark.slow
def test_a_thousand_pictures_without_torch(tmp_path: Path, pictures_of_emoji: Callable[[Path], int]) -> None:
    """lite, asked for the hundred classes of emoji, on a thousand of its pictures: the same class on every one."""
    assert pictures_of_emoji(tmp_path / "pictures") == 1000
    from everclip.data import load

    model = open_model("lite", load("emoji").class_names, 96)
    export(model, "onnx", str(tmp_path / "onnx"), drawn(96))
    found = without_torch(tmp_path / "onnx", sorted((tmp_path / "pictures").glob("*")))
    same = 0
    for answer in answers(model, files(expanded([str(tmp_path / "pictures")]))):
        assert answer.probabilities is not None
        same += found[answer.key][0] == model.names[int(answer.probabilities.argmax())]
    assert same == 1000


@pytest.fixture
def pictures_of_emoji() -> Callable[[Path], int]:
    """Writes the first thousand pictures of emoji into a folder."""

    def write(folder: Path) -> int:
        folder.mkdir()
        with zipfile.ZipFile(verified("pictures.zip")) as archive:
            names = sorted(archive.namelist())[:1000]
            for number, name in enumerate(names):
                (folder / f"{number:04d}{Path(name).suffix}").write_bytes(archive.read(name))
        return len(names)

    return write


@pytest.mark.slow
def test_a_closed_form_says_how_unknown_a_picture_is(toy: str, photos: str, tmp_path: Path) -> None:
    run = learned(tmp_path / "run", toy, photos, "method=multilayer_lda")
    model = open_model(str(run))
    assert "unknown_score" not in _outputs(model, tmp_path / "plain")  # without thresholds it is of no use
    pictures = drawn(32)
    scores = judged(model, model.judge, pictures)[1][:, 0]
    held = held_out(model.judge.names[0], "some", scores[20:60])  # others than the pictures below
    model = replace(model, unknown=held)
    folder = tmp_path / "onnx"
    assert _outputs(model, folder) == ["logits", "unknown_score"]
    mean, std = (
        np.array(part, dtype=np.float32)[:, None, None] for part in (model.clip.mean, model.clip.std)
    )
    logits, found = session(folder).run(
        None, {"images": (pictures.numpy().astype(np.float32) / 255 - mean) / std}
    )
    np.testing.assert_allclose(probabilities(logits), probabilities(model.logits(pictures)), atol=1e-3)
    np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-3 * np.ptp(scores))
    how = json.loads((folder / "preprocess.json").read_text())["unknown"]
    assert how["score"] == "relative_mahalanobis"
    assert how["thresholds"] == {f"{rate:g}": held.threshold(rate) for rate in (0.05, 0.1, 0.2, 0.5)}
    one = export(model, "onnx", str(tmp_path / "one"), pictures[:1]).checked  # whose scores have no span
    assert one["largest_difference_of_unknown_scores"] < 1e-4
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pictures[number].permute(1, 2, 0).numpy()).save(paths[-1])
    said = subprocess.run(
        [sys.executable, str(folder / "example.py"), "--unknown-at", "0.5", *map(str, paths)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    unknown = [f"{path}\tunknown\t" in said for path in paths]
    assert unknown == (scores[:12] > held.threshold(0.5)).tolist()
    assert 0 < sum(unknown) < 12


def _outputs(model: Deployed, folder: Path) -> list[str]:
    export(model, "onnx", str(folder), drawn(32))
    return [one.name for one in session(folder).get_outputs()]
