"""everclip export and evaluate of what it wrote: messages, exit codes, numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everclip.export import Written
from everclip.export.shared.quantised import Dropped
from tests.cli.conftest import Say
from tests.learned import coloured, held_out, learned, unlearned
from tests.pictures import image_folder


@pytest.fixture(scope="module")
def run(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "run", toy, photos, "method=finetune", "train.epochs=3")


@pytest.fixture(scope="module")
def head(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("heads") / "run", toy, photos, "method=ncm", "center=true")


def test_what_it_says_of_a_folder(run: Path, tmp_path: Path, say: Say) -> None:
    code, out, err = say("export", run, "-o", tmp_path / "m")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{tmp_path}/m: open-clip, 6 classes; read again: the same probabilities; open_clip: features"
    )
    code, out, err = say("export", run, "--out", tmp_path / "n", "--json")
    result = json.loads(out)
    assert (result["classes"], result["format"], result["notes"]) == (6, "open-clip", [])
    assert result["checked"]["everclip"] == 0
    assert result["checked"]["open_clip"] < 1e-5


def test_what_open_clip_alone_would_miss_is_said(head: Path, tmp_path: Path, say: Say) -> None:
    code, _, err = say("export", head, "-o", tmp_path / "m")
    assert code == 0
    lines = err.splitlines()
    assert lines[0].startswith("note: open_clip loads only the towers, everclip the classifier too")
    assert lines[1].startswith("note: this model subtracts a mean from image features (center=true)")


def test_a_note_with_a_strangers_name_is_shown_as_it_is(
    run: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's name comes from the model's own config."""
    written = Written({"everclip": 0.0}, ("open_clip asks the Hugging Face hub for a/b\x1b[31m",))
    monkeypatch.setattr("everclip.export.export", lambda *_: written)
    assert say("export", run, "-o", tmp_path / "m")[2].endswith("for a/b\\x1b[31m\n")


def test_a_gate_that_is_not_met_has_the_same_keys(
    run: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(say("export", run, "-o", tmp_path / "m", "--json")[1])

    def dropped(*_: object) -> None:
        raise Dropped({"drop": 2.0}, "int8: 2 points lost")

    monkeypatch.setattr("everclip.export.export", dropped)
    code, out, err = say("export", run, "-o", tmp_path / "n", "--json")
    wanted = {"out": None, "checked": {"int8": {"drop": 2.0}}, "notes": []}
    assert (code, json.loads(out), list(json.loads(out))) == (3, whole | wanted, list(whole))
    assert err == "gate not met: int8: 2 points lost; nothing was written\n"


def test_a_folder_is_evaluated_as_the_run_is(run: Path, head: Path, tmp_path: Path, say: Say) -> None:
    data = held_out(tmp_path / "held")
    for name, model in (("text", run), ("head", head)):
        say("export", model, "-o", tmp_path / name)
        one, two = (
            json.loads(say("evaluate", which, "--data", data, "--json")[1])
            for which in (model, tmp_path / name)
        )
        for result in (
            one,
            two,
        ):  # a folder of a text tower has the learned classes alone, in the order learned
            result["model"] = ""
            result["per_class"].sort(key=lambda row: row["class"])
        assert (one.pop("duplicates"), two.pop("duplicates")) == (
            0,
            None,
        )  # a folder does not know its images
        assert one == two
        assert one["label_set"] == 6
        assert 0 <= one["ece"] <= 1
        assert one["nll"] > 0
        assert one["temperature"] is None
    again = tmp_path / "again"
    assert say("export", tmp_path / "head", "-o", again)[0] == 0
    assert (again / "everclip.json").read_bytes() == (tmp_path / "head" / "everclip.json").read_bytes()


def test_one_class_is_measured_among_the_learned_ones_alone(
    run: Path, toy: str, tmp_path: Path, say: Say
) -> None:
    one, other = (coloured(tmp_path / name, {name: (90, 90, 90)}) for name in ("red", "purple"))
    result = json.loads(say("evaluate", run, "--data", one, "--unknown", other, "--json")[1])
    assert (result["label_set"], result["images"], result["unknown"]["images"]) == (6, 4, 4)
    assert say("export", run, "--check", one, "-o", tmp_path / "m")[0] == 0
    line = 'has one class, "purple", and a text tower chooses among those of the data: add a CLASS folder'
    for words in (["--data", other], ["--retention", other]):
        code, _, err = say("evaluate", run, *words)
        assert (code, err.splitlines()[-1]) == (2, f"error: {other} {line}")
    assert "a classifier needs two" in say("evaluate", toy, "--data", one)[2]


def test_retention_is_what_the_text_tower_still_knows(run: Path, toy: str, tmp_path: Path, say: Say) -> None:
    other = unlearned(tmp_path / "other")
    code, out, err = say("evaluate", run, "--retention", other)
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith("retention: "))
    result = json.loads(say("evaluate", run, "--retention", other, "--json")[1])["retention"]
    plain = json.loads(say("evaluate", toy, "--data", other, "--json")[1])
    towers = json.loads(say("evaluate", f"local-dir:{run}", "--data", other, "--json")[1])
    assert result == {
        "data": other, "model": toy, "accuracy": towers["accuracy"], "pretrained": plain["accuracy"],
    }  # fmt: skip
    change = 100 * (towers["accuracy"] - plain["accuracy"])
    assert line == (
        f"retention: {towers['accuracy']:.1%} zero-shot on {other},"
        f" {change:+.1f} points from {toy} ({plain['accuracy']:.1%})"
    )
    assert json.loads(say("evaluate", run, "--json")[1])["retention"] is None


def test_calibration_has_a_line(run: Path, say: Say) -> None:
    out = say("evaluate", run)[1]
    result = json.loads(say("evaluate", run, "--json")[1])
    assert (
        f"calibration: error {result['ece']:.1%} (ECE, 15 bins), negative log-likelihood {result['nll']:.3f},"
        " no temperature fitted" in out.splitlines()
    )


BAD: list[tuple[str, str]] = [
    ("export {run} -o {tmp}/m --format onxx", '--format is "onxx"; did you mean "onnx"?'),
    ("export {run} -o {tmp}/full", "{tmp}/full exists: give a new or an empty folder"),
    ("export {run} -o {tmp}/full/file", "{tmp}/full/file exists: give a new or an empty folder"),
    ("export {run} -o {tmp}/full/file/m", "{tmp}/full/file/m cannot be written, as {tmp}/full/file is a file"),
    ("export {run}", "everclip export needs OUT: see everclip export --help"),
    ("export {toy} -o {tmp}/m", "{toy} comes without classes: give --classes FILE, one name per line"),
    ("export {run} -o {tmp}/m --classes {tmp}/two.txt", "--classes is for --format onnx, or a model that has learned"),
    ("export {run} -o {tmp}/m --check {tmp}/no", 'data "{tmp}/no" is not there: give a folder'),
    ("export {run} -o {tmp}/m --check imagefolder:{tmp}/no", "data folder {tmp}/no does not exist"),
    ("evaluate {tmp}/folder", "{tmp}/folder is a model folder, without images of its own: give --data"),
    ("evaluate {run} --templates simple", "--templates is for models that have learned nothing; {run} has its own"),
    ("evaluate {run} --image-size 64", "--image-size is for models that have learned nothing; {run} has its own"),
    ("evaluate {toy} --data {photos} --retention {photos}", "--retention needs a trained model, and"),
    ("evaluate {run} --retention imagefolder:{tmp}/no", "data folder {tmp}/no does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_gives_one_line_and_leaves_nothing(
    run: Path, toy: str, photos: str, tmp_path: Path, say: Say, line: str, message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "two.txt").write_text("red\nblue\n")
    if "folder" in line:
        say("export", run, "-o", tmp_path / "folder")
    before = sorted(tmp_path.rglob("*"))
    named = {"run": run, "toy": toy, "photos": photos, "tmp": tmp_path}
    code, out, err = say(*(part.format(**named) for part in line.split()))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message.format(**named)}")
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_no_images_to_check_on(run: Path, tmp_path: Path, say: Say) -> None:
    root = image_folder(tmp_path / "data", {"train": 1}, 2)
    for name in ("red", "green"):
        (root / "test" / name).mkdir(parents=True)
    code, _, err = say("export", run, "-o", tmp_path / "m", "--check", f"imagefolder:{root}")
    assert (code, err) == (2, f"error: imagefolder:{root} has no test images: give a folder with images\n")
    assert not (tmp_path / "m").exists()


def test_broken_images_to_check_on(run: Path, tmp_path: Path, say: Say) -> None:
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_text("x")
    code, _, err = say("export", run, "-o", tmp_path / "m", "--check", f"imagefolder:{tmp_path}/data")
    assert code == 1
    assert err.startswith(f"error: not one of 2 images of imagefolder:{tmp_path}/data can be read")
    assert not (tmp_path / "m").exists()
