"""everclip predict: what it prints, for whom, and what it says to bad input."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip.cli import predict as command
from everclip.data.pixels import Pixels
from everclip.inference.model import open_model
from tests.cli.conftest import Say
from tests.learned import coloured, held_out, learned, unlearned
from tests.pictures import COLOURS, image_folder, picture
from tests.toy import damaged_clip


@pytest.fixture(scope="module")
def run(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "run", toy, photos, "method=finetune", "train.epochs=3")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures in two folders, one of them broken, and a file that is none."""
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for number, colour in enumerate(COLOURS.values()):
        picture(colour, number).save(tmp_path / "pictures" / f"{number}.png")
    picture((0, 99, 99), 7).save(tmp_path / "pictures" / "deep" / "a.jpg")
    (tmp_path / "pictures" / "3b.png").write_text("broken")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_makes_no_page_asks_for_neither_matplotlib_nor_jinja2(run: Path, pictures: Path) -> None:
    """transformers, where it is installed, asks for jinja2 itself."""
    predict = ["predict", str(run), str(pictures / "0.png"), "--json"]
    code = f"""
import builtins, sys
load, asked = builtins.__import__, []
def note(name, globals=None, *rest, **more):
    if name.split(".")[0] in ("matplotlib", "jinja2"):
        asked.append((globals or {{}}).get("__name__", "").split(".")[0])
    return load(name, globals, *rest, **more)
builtins.__import__ = note
from everclip.cli.app import main
codes = [main(["train", "--help"]), main({predict!r})]
print(codes, "everclip" in asked, "matplotlib" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["class"] is not None
    assert done.stderr.splitlines()[-1] == "[0, 0] False False"


def test_probabilities_are_those_of_the_model(run: Path, pictures: Path, say: Say) -> None:
    code, out, err = say("predict", run, pictures, "--json", "--top", 3)
    assert (code, err) == (0, "")
    found = rows(out)
    assert [Path(row["file"]).relative_to(pictures).as_posix() for row in found] == [
        "0.png", "1.png", "2.png", "3.png", "3b.png", "4.png", "5.png", "deep/a.jpg"
    ]  # fmt: skip
    assert all(list(row) == ["file", "class", "probability", "top", "error"] for row in found)
    model = open_model(str(run))
    for row in found:
        if row["file"].endswith("3b.png"):
            assert row | {"file": ""} == {
                "file": "", "class": None, "probability": None, "top": [],
                "error": "no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM",
            }  # fmt: skip
            continue
        images, _ = Pixels(_store(row["file"]), model.clip.eval_transform, 32, 0).load(np.array([0]))
        logits = model.logits(images)[0]
        wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        order = (-wanted).argsort()[:3]
        assert [top["class"] for top in row["top"]] == [model.names[c] for c in order]
        np.testing.assert_allclose([top["probability"] for top in row["top"]], wanted[order], atol=1e-4)
        assert (row["class"], row["probability"]) == (row["top"][0]["class"], row["top"][0]["probability"])


def _store(path: str) -> Any:
    from everclip.data.images import FileStore

    return FileStore(Path(), [path])


def test_lines_have_tabs(run: Path, pictures: Path, say: Say) -> None:
    _, out, _ = say("predict", run, pictures / "0.png", pictures / "3b.png", "--top", 2)
    good, broken = (line.split("\t") for line in out.splitlines())
    assert good[0] == str(pictures / "0.png")
    assert [float(cell) for cell in (good[2], good[4])] == sorted(
        map(float, (good[2], good[4])), reverse=True
    )
    assert {good[1], good[3]} < set(COLOURS)
    assert broken == [
        str(pictures / "3b.png"),
        "none",
        "",
        "cannot be read: no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM",
    ]


def test_a_terminal_gets_columns() -> None:
    shown = {
        "file": "a.png",
        "class": "red",
        "probability": 0.5,
        "top": [{}, {"class": "blue", "probability": 0.25}],
    }
    line = command.as_line(shown | {"error": None}, aligned=6)
    assert line == "a.png" + " " * 37 + "red     0.500  blue    0.250"


def test_paths_on_standard_input(
    run: Path, pictures: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "\n".join([str(pictures / "deep"), "", str(pictures / "gone.png"), str(pictures / "0.png")])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(listed))))
    code, out, _ = say("predict", run, "-", "--json")
    assert code == 0
    assert [row["error"] for row in rows(out)] == [None, "No such file or directory", None]


def test_a_path_on_standard_input_that_is_no_utf_8(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = f"caf\xe9.png\n{pictures / '0.png'}\n".encode("latin-1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed), "utf-8"))
    assert [os.fsencode(path) for path in command._paths(("-",))] == listed.splitlines()


def test_more_pictures_than_a_batch_keep_their_order(run: Path, tmp_path: Path, say: Say) -> None:
    for number in range(150):
        picture(list(COLOURS.values())[number % 6], number).save(tmp_path / f"{number:03d}.png")
    for number in (0, 63, 64, 149):
        (tmp_path / f"{number:03d}.png").write_text("broken")
    _, out, _ = say("predict", run, tmp_path, "--json")
    assert [Path(row["file"]).stem for row in rows(out)] == [f"{number:03d}" for number in range(150)]
    assert [number for number, row in enumerate(rows(out)) if row["error"]] == [0, 63, 64, 149]


def test_a_doubtful_picture_is_rejected(run: Path, pictures: Path, say: Say) -> None:
    _, out, err = say("predict", run, pictures / "0.png", "--json", "--reject-below", 1)
    (row,) = rows(out)
    assert row["class"] is None
    assert row["top"][0]["probability"] == row["probability"] < 1
    assert row["error"] is None
    assert err == f"note: probabilities of {run} are not calibrated: see --calibrate\n"
    assert say("predict", run, pictures / "0.png", "--reject-below", 1)[1].split("\t")[1] == "none"
    _, out, err = say(
        "predict", run, pictures / "0.png", "--json", "--reject-below", row["probability"] - 0.01
    )
    assert rows(out)[0]["class"] == row["top"][0]["class"]


def test_a_temperature_is_kept_with_the_run_or_in_the_folder(
    run: Path, pictures: Path, tmp_path: Path, say: Say
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    data = held_out(tmp_path / "held")
    folder = tmp_path / "folder"
    assert say("export", run, "-o", folder)[0] == 0
    before = rows(say("predict", run, pictures / "0.png", "--json")[1])[0]
    found = {}
    for model in (run, folder):
        code, out, err = say("predict", model, "--calibrate", data)
        assert (code, out) == (0, "")
        kept = model / "calibration.json"
        assert "fitted on 24 images is rough" in err
        assert f"fitted on 24 images of {data}" in err
        assert f"kept in {kept}" in err
        temperature = json.loads(kept.read_text())["calibration"]["temperature"]
        after = rows(say("predict", model, pictures / "0.png", "--json", "--reject-below", 0.01)[1])[0]
        ratio = [
            np.log(row["top"][0]["probability"] / row["top"][1]["probability"]) for row in (before, after)
        ]
        assert ratio[0] / ratio[1] == pytest.approx(temperature, rel=1e-2)
        found[model] = temperature
        evaluated = json.loads(say("evaluate", model, "--data", data, "--json")[1])
        assert evaluated["temperature"] == temperature
    assert found[run] == pytest.approx(found[folder])
    kept = (run / "calibration.json").read_text()
    say("predict", run, "--calibrate", data)
    assert (run / "calibration.json").read_text() == kept, "it starts from 1 again"
    few = coloured(tmp_path / "few", dict([*COLOURS.items()][:3]), 8, seed=1)
    (tmp_path / "few.txt").write_text("\n".join([*COLOURS][:3]))
    err = say("predict", run, "--classes", tmp_path / "few.txt", "--calibrate", few)[2]
    assert err.rstrip().endswith("for this call: it is of the given classes alone")
    assert (run / "calibration.json").read_text() == kept

    (run / "calibration.json").write_text("{}")
    assert "calibration.json is damaged: remove it, or calibrate again" in say("predict", run, pictures)[2]


def test_pictures_that_are_all_right_give_no_temperature(run: Path, tmp_path: Path, say: Say) -> None:
    held_out(tmp_path / "held", 8)
    found = rows(say("predict", run, tmp_path / "held", "--json")[1])
    right = [row["file"] for row in found if Path(row["file"]).parent.name == row["class"]]
    for file in right:
        place = tmp_path / "right" / Path(file).relative_to(tmp_path / "held")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    data = f"imagefolder:{tmp_path / 'right'}"
    code, out, err = say("predict", run, "--calibrate", data)
    assert (code, out) == (2, "")
    assert err == (
        f"error: no temperature is best: {run} is always right on the {len(right)} images of {data}; give more of"
        " them\n"
    )


def test_what_is_not_a_number_gives_no_temperature(tmp_path: Path, say: Say) -> None:
    model = f"local-dir:{damaged_clip(tmp_path)}"
    (tmp_path / "names.txt").write_text("red\ngreen\n")
    data = coloured(tmp_path / "held", dict([*COLOURS.items()][:2]))
    code, out, err = say("predict", model, "--classes", tmp_path / "names.txt", "--calibrate", data)
    line = f"error: {model} gives NaN instead of logits: use another copy\n"
    assert (code, out, err) == (1, "", line)


def test_a_temperature_may_be_fitted_on_one_class(run: Path, tmp_path: Path, say: Say) -> None:
    data = coloured(tmp_path / "held", {"white": COLOURS["white"]}, 24, seed=3)
    found = json.loads(say("evaluate", run, "--data", data, "--json")[1])
    assert (found["label_set"], [row["class"] for row in found["per_class"]]) == (6, ["white"])
    run = shutil.copytree(run, tmp_path / "run")
    code, _, err = say("predict", run, "--calibrate", data)
    assert (code, f"fitted on 24 images of {data}" in err) == (0, True)


def test_a_class_without_training_images_has_no_probability_to_calibrate(
    toy: str, tmp_path: Path, say: Say
) -> None:
    image_folder(tmp_path / "photos", {"train": 2, "test": 2}, classes=4)
    for file in (tmp_path / "photos" / "train" / "green").iterdir():
        file.write_text("broken")
    ncm = learned(
        tmp_path / "run", toy, f"imagefolder:{tmp_path / 'photos'}", "method=ncm", "scenario.tasks=2"
    )
    data = coloured(tmp_path / "held", dict([*COLOURS.items()][:4]))
    code, out, err = say("predict", ncm, "--calibrate", data)
    assert (code, out) == (2, "")
    assert err == (
        f'error: --calibrate {data} has images of "green", of which {ncm} has learned none: leave that class out\n'
    )


def test_no_class_that_was_learned_is_one_line(toy: str, tmp_path: Path, say: Say) -> None:
    """Neither predict nor export gives numbers that are none, where of all classes to choose from no image was read."""
    photos = image_folder(tmp_path / "photos", {"train": 4, "test": 2})
    for file in (photos / "train" / "red").iterdir():
        file.write_bytes(b"broken")
    run, one = learned(tmp_path / "run", toy, f"imagefolder:{photos}", "method=ncm"), tmp_path / "one.txt"
    one.write_text("red\n")
    line = f"error: {run} has learned no image of any of the 1 classes to choose from: add a class"
    picture = photos / "test" / "red" / "0.png"
    for words in (
        ("predict", run, picture, "--json"),
        ("export", run, "--format", "onnx", "-o", tmp_path / "onnx"),
    ):
        code, out, err = say(*words, "--classes", one)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(line)
    one.write_text("red\ngreen\n")
    shown = rows(say("predict", run, picture, "--json", "--classes", one)[1])[0]
    assert [top["probability"] for top in shown["top"]] == [1, 0]


def test_unknown_pictures_are_found_at_a_stated_rate(
    run: Path, pictures: Path, tmp_path: Path, say: Say
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    code, out, err = say("predict", run, pictures, "--unknown-at", "5%")
    assert (code, out) == (2, "")
    assert err.startswith(
        f"error: {run} keeps no scores of held-out images among these 6 classes to set a threshold by"
    )
    data = held_out(tmp_path / "held")
    err = say("predict", run, "--calibrate", data)[2]
    assert "--unknown-at from 4%, by the score maximum_logit; kept in" in err
    kept = open_model(str(run)).unknown
    assert kept is not None
    assert (kept.images, kept.data) == (24, data)
    code, out, err = say("predict", run, pictures, "--unknown-at", "1%")
    assert (code, out) == (2, "")
    assert "a rate of 1 % needs 99 held-out images of known classes, 75 more than the 24" in err
    (tmp_path / "some.txt").write_text("red\nblue\n")
    some = ("--classes", tmp_path / "some.txt")
    code, out, err = say("predict", run, pictures, "--unknown-at", "5%", *some)
    assert (code, out) == (2, "")
    assert "no scores of held-out images among these 2 classes" in err, "those kept were scored among all"
    plain = rows(say("predict", run, pictures, "--json")[1])
    for rate in ("50%", "0.5"):
        found = rows(say("predict", run, pictures, "--json", "--unknown-at", rate)[1])
        for before, after in zip(plain, found, strict=True):
            assert list(after) == [*before, "unknown", "unknown_score"]
            if after["error"]:
                assert after == before | {"unknown": None, "unknown_score": None}
                continue
            assert after["unknown"] == (after["unknown_score"] > kept.threshold(0.5))
            assert after["class"] == (None if after["unknown"] else before["class"])
            assert after["top"] == before["top"]
        assert {row["unknown"] for row in found if not row["error"]} == {False, True}
    named = [row["unknown"] for row in found if not row["error"]]
    lines = say("predict", run, pictures, "--unknown-at", "50%")[1].splitlines()
    cells = [line.split("\t")[1] for line in lines if "cannot be read" not in line]
    assert [cell == "unknown" for cell in cells] == named
    content = json.loads((run / "calibration.json").read_text())
    old = {key: value for key, value in content.items() if key not in ("unknown", "sha256")}
    (run / "calibration.json").write_text(json.dumps(old))
    assert open_model(str(run)).unknown is None  # as earlier versions have written it
    (run / "calibration.json").write_text(json.dumps(content | {"unknown": {"scores": [1]}}))
    assert "calibration.json is damaged" in say("predict", run, pictures)[2]


def test_evaluate_tells_unknown_from_known(run: Path, tmp_path: Path, say: Say) -> None:
    data, other = held_out(tmp_path / "held"), unlearned(tmp_path / "other")
    code, out, _ = say("evaluate", run, "--data", data, "--unknown", other, "--json")
    assert code == 0
    found = json.loads(out)["unknown"]
    assert (found["images"], found["own"], list(found["scores"])) == (8, "maximum_logit", ["maximum_logit"])
    assert all(0 <= value <= 1 for value in found["scores"]["maximum_logit"].values())
    _, out, _ = say("evaluate", run, "--data", data, "--unknown", other)
    row = found["scores"]["maximum_logit"]
    assert f"AUROC {row['auroc']:6.1%}   FPR95 {row['fpr95']:6.1%}   used" in out
    code, _, err = say("evaluate", run, "--data", data, "--unknown", data)
    assert code == 2
    assert f'error: --unknown {data} has images of "black", which {run} knows: leave it out' in err
    code, _, err = say("evaluate", run, "--data", other, "--unknown", other)
    assert code == 2
    assert 'has images of "orange", which is not one of the 6 classes' in err


def test_a_run_may_lie_below_the_home_folder(run: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """As KEY=VALUE and scripts name it, where no shell has written the folder out."""
    monkeypatch.setenv("HOME", str(run.parent))
    for word in ("evaluate", "resume"):
        code, out, err = say(word, f"~/{run.name}", "--json")
        assert code == 0, err
        assert json.loads(out)


def test_another_stage_has_no_temperature(run: Path, tmp_path: Path, pictures: Path, say: Say) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    assert say("predict", run, "--calibrate", held_out(tmp_path / "held"))[0] == 0
    assert open_model(str(run)).calibration is not None
    stage = max((run / "checkpoints").glob("stage-*"))
    shutil.rmtree(stage)
    assert open_model(str(run)).calibration is None


def test_a_model_without_classes_of_its_own(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    (tmp_path / "pets.txt").write_text("a cat\n\n a dog \n")
    code, out, _ = say("predict", toy, pictures, "--classes", tmp_path / "pets.txt", "--json")
    assert code == 0
    assert {row["class"] for row in rows(out)} <= {"a cat", "a dog", None}
    data = held_out(tmp_path / "held")
    (tmp_path / "colours.txt").write_text("\n".join(COLOURS))
    err = say("predict", toy, "--classes", tmp_path / "colours.txt", "--calibrate", data)[2]
    assert err.rstrip().endswith("for this call: the model has no folder of its own")


BAD: list[tuple[str, int, str]] = [
    ("{run}", 2, "everclip predict needs pictures: give pictures, folders of them, or - for paths on standard input"),
    ("{run} {tmp}/no.png", 2, "{tmp}/no.png does not exist: give pictures, folders of them, or - for paths on"),
    ("{run} {pictures} --jsn", 2, 'everclip predict has no option "--jsn": see everclip predict --help'),
    ("{run} {tmp}/empty", 2, "no images in {tmp}/empty: give a folder with files such as .jpg or .png"),
    ("{run} {pictures}/3b.png", 1, "not one of 1 pictures could be read: the lines above say why"),
    ("{run} {pictures} --top 0", 2, "--top is 0: use a whole number from 1 to 1000000"),
    ("{run} {pictures} --reject-below 2", 2, "--reject-below is 2: use a probability from 0 to 1"),
    ("{run} {pictures} --unknown-at 0", 2, '--unknown-at is "0": use a rate of false alarms above 0 and below 1'),
    ("{run} {pictures} --unknown-at 100%", 2, '--unknown-at is "100%": use a rate of false alarms above 0'),
    ("{run} {pictures} --unknown-at few", 2, '--unknown-at is "few": use a rate of false alarms above 0'),
    ("{run} {pictures} --unknown-at nan", 2, '--unknown-at is "nan": use a rate of false alarms above 0'),
    ("{run} -", 2, "no paths on standard input: give one per line"),
    ("{pictures}/0.png {pictures}", 2, "{pictures}/0.png is a file: give a run directory, a model folder or a"),
    ("{toy} {pictures}", 2, "{toy} comes without classes: give --classes FILE, one name per line"),
    ("{tmp}/nowhere {pictures}", 2, 'model "{tmp}/nowhere" is neither a folder nor a known name: use NAME:TAG'),
    ("{tmp}/nowhere {pictures} --classes {tmp}/pets.txt", 2, 'model "{tmp}/nowhere" is neither a folder nor a known'),
    ("{run} {pictures} --classes {tmp}/no.txt", 2, "classes file {tmp}/no.txt cannot be read (No such file"),
    ("{run} {pictures} --classes {tmp}", 2, "classes file {tmp} cannot be read (it is a folder)"),
    ("{run} {pictures} --classes {tmp}/pets.txt", 2, '"a cat" is not one of the 6 classes that {run} has learned;'),
    ("{toy} {pictures} --classes {tmp}/twice.txt", 2, 'classes 1 and 2 of {tmp}/twice.txt are both named "a"'),
    ("{toy} {pictures} --classes {pictures}/deep/a.jpg", 2, "classes file {pictures}/deep/a.jpg cannot be read"),
    ("{run} --calibrate {photos}", 2, "--calibrate {photos} is the data of {run} itself: give other images"),
    ("{run} --calibrate {photos}/test", 2, "--calibrate {photos}/test is the data of {run} itself"),
    ("{run} --calibrate {other}", 2, '--calibrate {other} has images of "orange", which is not one of the 6'),
    ("{run} --calibrate imagefolder:{tmp}/no", 2, "data folder {tmp}/no does not exist"),
    ("{run} --calibrate {tmp}/empty", 2, "no images under {tmp}/empty: put files"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "message"), BAD, ids=[line for line, _, _ in BAD])
def test_bad_input_gives_one_line(
    run: Path, toy: str, photos: str, pictures: Path, tmp_path: Path, say: Say,
    monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "empty").mkdir()
    (tmp_path / "pets.txt").write_text("a cat\na dog\n")
    (tmp_path / "twice.txt").write_text("a\na\n")
    named = {"run": run, "toy": toy, "photos": photos, "pictures": pictures, "tmp": tmp_path}
    if "{other}" in line:
        named["other"] = unlearned(tmp_path / "other")
    found, _, err = say("predict", *(part.format(**named) for part in line.split()))
    assert found == code
    assert err.splitlines()[-1].startswith(f"error: {message.format(**named)}")
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("unprivileged")
def test_a_folder_that_cannot_be_written(run: Path, tmp_path: Path, say: Say) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    run.chmod(0o500)
    _, _, err = say("predict", run, "--calibrate", held_out(tmp_path / "held"))
    run.chmod(0o700)
    assert f"{run} cannot be written" in err
