from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.training import disk
from everclip.updating.cost import least
from everclip.updating.state import read
from tests.learned import coloured
from tests.pictures import picture

WARM = {"red": (220, 40, 40), "yellow": (230, 220, 50)}
COLD = {"blue": (40, 60, 220), "green": (40, 180, 60)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, toy: str) -> dict[str, str]:
    """A version that knows two colours, pictures of two others, and held-out ones."""
    root = tmp_path_factory.mktemp("update")
    found = {
        "warm": coloured(root / "warm", WARM, 6),
        "cold": coloured(root / "cold", COLD, 6),
        "test": coloured(root / "test", WARM | COLD, 4, 9),
        "root": str(root),
        "v1": str(root / "v1"),
    }
    assert main(["update", toy, "--add", found["warm"], "--test", found["test"], "-o", found["v1"]]) == 2
    found["warm-test"] = coloured(root / "warm-test", WARM, 4, 9)
    assert main(["update", toy, "--add", found["warm"], "--test", found["warm-test"], "-o", found["v1"]]) == 0
    return found


def test_what_follows_an_update(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "v2")
    words = [world["v1"], "--add", world["cold"], "--test", world["test"], "--max-drop", "100"]
    assert main(["update", *words, "--json", "-o", out]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["chosen"] in {row["name"] for row in verdict["candidates"]}
    assert verdict == json.loads((tmp_path / "v2" / "verdict.json").read_text())
    picture((220, 40, 40), 1).save(tmp_path / "p.png")
    assert main(["predict", out, str(tmp_path / "p.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] in ("red", "yellow", "blue", "green")
    assert main(["evaluate", out, "--data", world["test"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(verdict["test"]["accuracy"])
    assert main(["predict", out, "--calibrate", coloured(tmp_path / "c", WARM | COLD, 8, 4)]) == 0
    assert main(["export", out, "-o", str(tmp_path / "x")]) == 0
    purple = coloured(tmp_path / "purple", {"purple": (150, 30, 160)}, 6)
    again = ["update", out, "--add", purple, "--test", world["test"], "--max-drop", "100"]
    assert main([*again, "-o", str(tmp_path / "v3")]) == 0
    assert main(["rollback", str(tmp_path / "v3")]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "v3"), str(tmp_path / "p.png"), "--json", "--top", "9"]) == 0
    assert len(json.loads(capsys.readouterr().out)["top"]) == 4


def test_room_is_looked_for_before_anything_is_learned(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, state = tmp_path / "v2", read(Path(world["v1"]))
    written = sum(file.stat().st_size for file in Path(world["v1"]).rglob("*") if file.is_file())
    needed = least(state.known, state.frozen)
    assert written / 2 < needed < written
    words = ["update", world["v1"], "--add", world["cold"], "--test", world["test"], "--max-drop", "100"]
    capsys.readouterr()
    for free, code in ((needed - 1, 2), (needed, 0)):
        found = shutil._ntuple_diskusage(10 * needed, 9 * needed, free)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path, found=found: found)
        assert main([*words, "-o", str(out)]) == code
        assert out.exists() == (code == 0)
        stderr = capsys.readouterr().err
        refused = f"GiB to {out}, whose disk has 0.01 GiB free: make room, or give -o FOLDER on another disk"
        assert (refused in stderr) == (code == 2)


def test_a_text_version_merges(world: dict[str, str], toy: str, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("red\nyellow\n")
    words = ["update", toy, "--classes", str(classes), "--add", world["cold"], "--test", world["test"]]
    assert main([*words, "--method", "nothing", "--max-drop", "100", "-o", str(tmp_path / "v1")]) == 0
    merged = [
        "merge",
        str(tmp_path / "v1"),
        "--with",
        "zero-shot",
        "--alpha",
        "0.5",
        "-o",
        str(tmp_path / "m"),
    ]
    assert main(merged) == 0


def test_a_gate_that_is_not_met_is_exit_code_3_and_no_model(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures called red and yellow are now called blue and green too: the old classes must lose."""
    swapped = coloured(tmp_path / "swapped", {"blue": (220, 40, 40), "green": (230, 220, 50)}, 40, 3)
    before = {p.name: p.read_bytes() for p in Path(world["v1"]).iterdir()}
    words = ["update", world["v1"], "--add", swapped, "--test", world["test"], "--max-drop", "0"]
    code = main([*words, "-o", str(tmp_path / "v2")])
    assert code == 3
    assert "gate not met: old classes" in capsys.readouterr().err
    assert not (tmp_path / "v2").exists()
    assert "Not passed" in (tmp_path / "v2.verdict.html").read_text()
    assert json.loads((tmp_path / "v2.verdict.json").read_text())["gate"]["passed"] is False
    assert {p.name: p.read_bytes() for p in Path(world["v1"]).iterdir()} == before
    assert main([*words[:-1], "100", "-o", str(tmp_path / "v2")]) == 0
    assert not [*tmp_path.glob("v2.verdict.*")]  # which spoke of the attempt before


def test_what_no_update_wrote_is_neither_removed_nor_overwritten(
    world: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swapped = coloured(tmp_path / "swapped", {"blue": (220, 40, 40), "green": (230, 220, 50)}, 40, 3)
    words = ["update", world["v1"], "--add", swapped, "--test", world["test"]]
    own = {tmp_path / "v2.verdict.html": "<title>my notes</title>", tmp_path / "v2.verdict.json": "{}"}
    for file, text in own.items():
        file.write_text(text)
    assert main([*words, "--max-drop", "0", "-o", str(tmp_path / "v2")]) == 3
    assert caplog.text.count("is left alone: the verdict is not written there") == 2
    assert main([*words, "--max-drop", "100", "-o", str(tmp_path / "v2")]) == 0
    assert {file: file.read_text() for file in own} == own


def test_an_interrupt_after_the_commit_says_that_the_version_is_written(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("everclip.cli.update.print_table", interrupted)
    words = ["update", world["v1"], "--add", world["cold"], "--test", world["test"], "--max-drop", "100"]
    assert main([*words, "-o", str(tmp_path / "v2")]) == 130
    assert f"interrupted: {tmp_path / 'v2'} is written" in capsys.readouterr().err


def test_the_file_that_json_is_redirected_to_stays(world: dict[str, str], tmp_path: Path) -> None:
    words = [world["v1"], "--add", world["cold"], "--test", world["test"], "--max-drop", "100", "--json"]
    told = tmp_path / "v2.verdict.json"
    with told.open("w") as stdout:
        command = [sys.executable, "-m", "everclip", "update", *words, "-o", str(tmp_path / "v2")]
        subprocess.run(command, stdout=stdout, check=True)
    assert told.read_text() == (tmp_path / "v2" / "verdict.json").read_text()


def test_a_gate_that_measures_nothing_is_refused(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out images of the new classes alone say nothing of what the old ones lose."""
    test = coloured(tmp_path / "cold-test", COLD, 4, 9)
    words = ["update", world["v1"], "--add", world["cold"], "--test", test, "-o", str(tmp_path / "v2")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1] == (
        f"error: old classes of {world['v1']} may lose 1 point, but no test image shows one of them:"
        " give some, or use --unmeasured (in Python: no max_drop)"
    )
    assert main([*words, "--dry-run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == told.splitlines()[-1]
    assert "chosen" not in told  # nothing was trained either
    assert not [path for path in tmp_path.iterdir() if "v2" in path.name]
    assert main([*words, "--unmeasured"]) == 0
    assert "no held-out images of old classes: not measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "v2" / "verdict.json").read_text())["gate"]["drop"] is None


def test_a_dry_run_predicts_and_writes_nothing(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = coloured(tmp_path / "many", COLD, 20)
    assert main(["update", world["v1"], "--add", many, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]
    assert 0 < found["training_seconds"] <= found["seconds"]
    assert found["minutes"] == pytest.approx(found["seconds"] / 60, abs=0.01)
    assert found["memory_bytes"] > 0
    assert main(["update", world["v1"], "--add", many, "--dry-run", "-o", world["v1"]]) == 2
    assert "v1 exists: give a new or an empty folder" in capsys.readouterr().err
    assert main(["update", world["v1"], "--add", many, "--dry-run"]) == 0
    assert "nothing was trained" in capsys.readouterr().out


def wrong(tmp_path: Path) -> dict[str, str]:
    """Data that cannot be learned, by what is wrong with it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "blue").mkdir(parents=True)
    coloured(tmp_path / "unreadable", COLD, 3)
    for file in (tmp_path / "unreadable" / "blue").iterdir():
        file.write_bytes(b"no picture")
    coloured(tmp_path / "spelt", {"Red": (220, 40, 40), "blue": (40, 60, 220)}, 3, 7)
    return {
        name: f"imagefolder:{tmp_path / name}" for name in ("empty", "hollow", "unreadable", "spelt", "twice")
    }


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("empty", [], "no images under"),
        ("hollow", [], "has no images: add some"),
        ("unreadable", [], 'no image of "blue" in'),
        ("spelt", [], 'class "Red" of {spelt} looks like "red" spelled differently: rename the folder'),
        ("spelt", ["--same", "Red=purple"], 'the model has no "purple"'),
        ("spelt", ["--same", "Red"], '--same is "Red": use NEW=OLD'),
        (
            "cold",
            ["--same", "redd=red"],
            '--same "redd=red": no data has a class "redd"; did you mean "red"?',
        ),
        ("twice", [], 'but was learned as "red": if they are one class use --same'),
        ("cold", ["--max-drop", "-1"], "--max-drop is -1"),
        ("cold", ["--method", "rigde"], 'did you mean "ridge"?'),
        ("cold", ["--exemplars", "-1"], "--exemplars is -1"),
        ("cold", ["--memory", "{cold}"], '--memory {cold} has images of "blue", which'),
        ("cold", ["--image-size", "64"], "--image-size is for models that have learned nothing"),
        ("warm", ["--test", "{warm}"], "all test images ({warm}) were learned, or will be"),
        (
            "cold",
            ["--test", "{other}"],
            'test images ({other}) show "purple", which is neither an old nor a new class',
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_changes_nothing(
    name: str,
    words: list[str],
    message: str,
    world: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = (
        world
        | wrong(tmp_path)
        | {"other": coloured(tmp_path / "other", {"red": (200, 9, 9), "purple": (9, 9, 9)})}
    )
    if name == "twice":
        (tmp_path / "twice" / "scarlet").mkdir(parents=True)
        for file in (Path(world["root"]) / "warm" / "red").iterdir():
            (tmp_path / "twice" / "scarlet" / file.name).write_bytes(file.read_bytes())
    before = {p.name: p.read_bytes() for p in Path(world["v1"]).iterdir()}
    given = [word.format(**data) for word in words]
    test = [] if "--test" in given else ["--test", data["test"]]
    there = sorted(tmp_path.iterdir())
    code = main(["update", data["v1"], "--add", data[name], *test, *given, "-o", str(tmp_path / "v2")])
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert message.format(**data) in errors[0]
    assert sorted(tmp_path.iterdir()) == there
    assert {p.name: p.read_bytes() for p in Path(world["v1"]).iterdir()} == before


def test_a_class_may_have_another_name_in_all_data(world: dict[str, str], tmp_path: Path) -> None:
    other = {"Red": WARM["red"], "yellow": WARM["yellow"]}
    data = {
        name: coloured(tmp_path / name, other, 6, seed)
        for seed, name in enumerate(("add", "test", "memory"), 20)
    }
    words = [word for name, spec in data.items() for word in (f"--{name}", spec)]
    out = tmp_path / "v2"
    assert (
        main(["update", world["v1"], *words, "--same", "Red=red", "--max-drop", "100", "-o", str(out)]) == 0
    )
    verdict = json.loads((out / "verdict.json").read_text())
    assert [row["class"] for row in verdict["test"]["per_class"]] == ["red", "yellow"]
    assert verdict["classes"]["again"] == ["red", "yellow"]
    assert verdict["images"]["given"] == 12
    assert read(out).sums.counts.tolist() == [18, 18]


@pytest.mark.parametrize("name", ["test", "memory"])
def test_a_class_may_have_another_name_in_some_data(name: str, world: dict[str, str], tmp_path: Path) -> None:
    other = coloured(tmp_path / name, {"Red": WARM["red"], "yellow": WARM["yellow"]}, 6, 20)
    data = {"add": world["cold"], "test": world["test"]} | {name: other}
    words = [word for option, spec in data.items() for word in (f"--{option}", spec)]
    words += ["--same", "Red=red", "--max-drop", "100"]
    assert main(["update", world["v1"], *words, "--dry-run"]) == 0
    assert main(["update", world["v1"], *words, "-o", str(tmp_path / "v2")]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_update_leaves_no_half(
    number: signal.Signals, world: dict[str, str], tmp_path: Path
) -> None:
    many = coloured(tmp_path / "many", COLD, 60)
    words = ["update", world["v1"], "--add", many, "--test", world["test"], "-o", str(tmp_path / "v2")]
    before = {p.name: p.read_bytes() for p in Path(world["v1"]).iterdir()}
    child = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
         f"from everclip.cli.app import main; import sys; sys.exit(main({words!r}))"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stderr is not None
    with child.stderr as lines:
        for line in lines:
            if line.startswith("ridge"):  # training comes next
                break
        time.sleep(0.3)
        child.send_signal(number)
        told = lines.read()
    assert child.wait(60) != 0
    assert not [path.name for path in tmp_path.iterdir() if "v2" in path.name]
    assert {p.name: p.read_bytes() for p in Path(world["v1"]).iterdir()} == before
    assert "Traceback" not in told
    assert child.returncode == (130 if number == signal.SIGINT else 75)
    assert "is unchanged" in told


def test_what_is_missing_is_said(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["update", world["v1"], "--add", world["cold"], "--test", world["test"]]) == 2
    assert "needs --out" in capsys.readouterr().err
    assert main(["update", world["v1"], "--add", world["cold"], "-o", str(tmp_path / "v2")]) == 2
    assert "needs --test" in capsys.readouterr().err
    assert main(["rollback", str(tmp_path)]) == 2
    assert "is not a version" in capsys.readouterr().err


def test_plain_folders_are_read_and_one_folder_is_split(
    world: dict[str, str], toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm, cold, test = (world[name].removeprefix("imagefolder:") for name in ("warm", "cold", "test"))
    assert main(["update", toy, "--add", warm, "--test", world["warm"], "-o", str(tmp_path / "v1")]) == 0
    err = capsys.readouterr().err
    assert f"--add imagefolder:{warm}: 10 images of 2 classes to learn, except a fifth of each class\n" in err
    assert f"--test imagefolder:{warm}: 2 images of 2 classes for testing, that fifth\n" in err
    assert json.loads((tmp_path / "v1" / "verdict.json").read_text())["test"]["duplicates"] == 0
    words = ["update", str(tmp_path / "v1"), "--add", cold, "--test", test, "--max-drop", "100"]
    assert main([*words, "-o", str(tmp_path / "v2")]) == 0
    err = capsys.readouterr().err
    assert f"--add imagefolder:{cold}: 12 images of 2 classes to learn, all of it\n" in err
    assert f"--test imagefolder:{test}: 16 images of 4 classes for testing, all of it\n" in err
