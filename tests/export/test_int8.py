"""The 8-bit graph: smaller, nearly the same, and never written where it loses too much."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from everclip.cli.export import _opened
from everclip.data.images import ImageSet
from everclip.data.sources.cifar100 import CifarStore
from everclip.errors import RunError
from everclip.export.shared import quantised
from everclip.models import zoo
from tests.cli.conftest import Say, say
from tests.export.test_onnx import without_torch
from tests.learned import coloured, learned
from tests.pictures import COLOURS, picture
from tests.versions import WARM, begin, colours, first, updated, written

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

__all__ = ["say"]


@pytest.fixture(scope="module")
def version(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("versions")
    outcome = first(toy, root)
    written(outcome, begin(toy), root / "v1")
    return root / "v1"


@pytest.mark.slow
def test_a_version_is_calibrated_on_its_exemplars(version: Path, tmp_path: Path, say: Say) -> None:
    words = ("export", version, "--format", "onnx", "--int8", "-o", tmp_path / "m", "--max-drop", 100)
    code, out, err = say(*words, "--json")
    assert (code, err) == (0, "")
    lost = json.loads(out)["checked"]["int8"]
    rows = json.loads((version / "images.json").read_text())["rows"]
    assert lost["images"] == sum(row[3] for row in rows)
    assert lost["calibrated_on"] == sum(not row[3] for row in rows)
    assert lost["drop"] == pytest.approx(100 * (lost["accuracy_fp32"] - lost["accuracy"]), abs=0.01)
    whole, small = tmp_path / "m" / "model.onnx", tmp_path / "m" / quantised.FILE
    assert (lost["bytes_fp32"], lost["bytes"]) == (whole.stat().st_size, small.stat().st_size)
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"| model.int8.onnx on {lost['images']} images | {100 * lost['accuracy']:.1f} |" in card
    whole.unlink()  # the example takes the small graph
    picture(WARM["red"], 1).save(tmp_path / "a.png")
    ((label, p),) = without_torch(tmp_path / "m", [tmp_path / "a.png"]).values()
    assert label in WARM
    assert 0.5 <= p <= 1


@pytest.mark.slow
def test_too_much_lost_is_exit_code_3_and_no_folder(
    version: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranges come from inputs that are nearly 0, so that pictures do not fit in."""
    original = quantised.as_input
    monkeypatch.setattr(quantised, "as_input", lambda clip, pictures: original(clip, pictures) * 1e-4)
    data = coloured(tmp_path / "held", WARM, 20, seed=4)
    words = ("export", version, "--format", "onnx", "--int8", "-o", tmp_path / "m", "--check", data)
    code, out, err = say(*words, "--max-drop", 0)
    assert (code, out) == (3, "")
    assert err.startswith("gate not met: int8: ")
    assert err.rstrip().endswith("0 allowed; nothing was written")
    assert [path.name for path in tmp_path.iterdir()] == ["held"]


BAD: list[tuple[str, str]] = [
    ("{v} --int8", "--int8 is for --format onnx, not open-clip: add --format onnx, or leave it out"),
    ("{v} --encoders separate", "--encoders separate is for --format onnx, not open-clip"),
    ("{v} --format onnx --encoders both", '--encoders is "both"; known: one, separate'),
    ("{v} --format onnx --max-drop 2", "--max-drop is for --int8: add --int8, or leave it out"),
    ("{v} --format onnx --calibrate {data}", "--calibrate is for --int8: add --int8"),
    ("{v} --format onnx --int8 --max-drop 101", "--max-drop is 101: use percentage points from 0 to 100"),
    ("{run} --format onnx --int8", "--int8: {run} keeps no exemplars: give images in CLASS folders with --calibrate"),
    ("{run} --format onnx --int8 --calibrate {data}", "--int8: {run} keeps no check images: give images in CLASS"),
    ("{run} --format onnx --int8 --calibrate {data} --check {data}", "--int8: all images of --calibrate are also in"),
    ("{v} --format onnx --int8 --check {data}", '--check {data} has images of "black", which is not one of the 2'),
]  # fmt: skip


@pytest.fixture(scope="module")
def run(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "run", toy, photos, "method=ncm")


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line(
    version: Path, run: Path, tmp_path: Path, say: Say, line: str, message: str
) -> None:
    data = coloured(tmp_path / "data", COLOURS, 1)
    named = {"v": version, "run": run, "data": data}
    words = (part.format(**named) for part in line.split())
    code, out, err = say("export", *words, "-o", tmp_path / "m")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message.format(**named)}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_nothing_is_calibrated_on_what_it_is_tested_on(version: Path, tmp_path: Path) -> None:
    state = begin(str(version))
    assert state.model is not None
    calibrate = Path(coloured(tmp_path / "a", WARM, 4, seed=3).partition(":")[2])
    shutil.copytree(calibrate, tmp_path / "b")
    for name in WARM:  # half of the test images are copies, under other names
        for number in (0, 1):
            (tmp_path / "b" / name / f"{number}.png").unlink()
            (tmp_path / "b" / name / f"{number + 2}.png").rename(tmp_path / "b" / name / f"copy{number}.png")
    given = (str(calibrate), str(tmp_path / "b"))
    found = quantised.samples(state.model, (state.exemplars, state.checks), given, 1.0)
    assert (len(found.calibrate), len(found.test)) == (4, 4)
    kept = {Path(str(found.calibrate.store.keys[row])).name for row in found.calibrate.rows.tolist()}
    assert kept == {"0.png", "1.png"}


def test_nor_on_rows_of_cifar100_which_knows_its_images_by_their_pixels(version: Path) -> None:
    model = begin(str(version)).model
    assert model is not None
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    rows, zeros = np.arange(4), np.zeros(4, dtype=np.int64)
    images = ImageSet(CifarStore({"test": pixels}), rows, zeros + model.labels[0], zeros, rows)
    found = quantised.samples(model, (images, images.select(rows < 2)), (None, None), 1.0)
    assert found.calibrate.rows.tolist() == [2, 3]


def test_a_version_that_is_still_its_run_is_calibrated_on_its_own_labels(run: Path, tmp_path: Path) -> None:
    """A run's labels are not in the order learned, which that of a version's classes is."""
    before = begin(str(run))
    made = updated(before, colours(tmp_path / "new", WARM, 2, 3), method="nothing")
    written(made, before, tmp_path / "v1")
    model, kept = _opened(str(tmp_path / "v1"), None, "onnx", True)
    assert model.labels != tuple(range(6))
    calibrate = quantised.samples(model, kept, (None, None), 1.0).calibrate
    said = {model.classes[label] for label in calibrate.labels[calibrate.domains == 1].tolist()}
    assert said == {*WARM}


def test_images_to_calibrate_on_of_which_none_can_be_read(toy: str, tmp_path: Path) -> None:
    images = colours(tmp_path / "a", WARM, 2).whole()
    for file in (tmp_path / "a").rglob("*.png"):
        file.write_text("broken")
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 3, 3), dtype=np.float32), "weight")
    shapes = [("images", ["b", 3, 32, 32]), ("logits", ["b", 2, 30, 30])]
    given, made = (onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes)
    node = onnx.helper.make_node("Conv", ["images", "weight"], ["logits"], "conv")
    graph = onnx.helper.make_graph([node], "graph", [given], [made], [weight])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(RunError, match="not one of 4 images to calibrate on can be read"):
        quantised.quantise(tmp_path / "model.onnx", tmp_path / "small.onnx", zoo.load(toy), images)


class Net(nn.Module):
    """Two convolutions, a residual sum, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.one(images).clamp(0, 6)
        return self.linear((first + self.two(first)).mean((2, 3)))


def test_the_classifier_stays_as_it_is_and_like_constants_are_kept_once(toy: str, tmp_path: Path) -> None:
    from everclip.export.shared.tracing import trace

    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images) + self.net(images.flip(-1))

    images: ImageSet = colours(tmp_path / "a", WARM, 8).whole()
    clip, net = zoo.load(toy), Twice()
    trace("net", net, torch.zeros(2, 3, 32, 32), "images", ["logits"]).save(tmp_path / "model.onnx")
    assert quantised.quantise(tmp_path / "model.onnx", tmp_path / "small.onnx", clip, images) == 16
    graph = onnx.load(tmp_path / "small.onnx").graph
    fixed = {one.name: one.data_type for one in graph.initializer}
    last = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    assert last
    assert all(fixed[node.input[1]] == onnx.TensorProto.FLOAT for node in last)
    kernels = [one for one in graph.initializer if len(one.dims) == 4]
    assert [one.data_type for one in kernels] == [onnx.TensorProto.INT8] * 2
    from everclip.data.pixels import Pixels
    from everclip.export.shared.session import Running

    pixels, _ = Pixels(images.store, clip.eval_transform, 32, 0).load(images.rows)
    ours = net(clip.normalise(pixels)).detach().numpy()
    theirs = Running(tmp_path / "small.onnx", clip)(pixels).numpy()
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()
