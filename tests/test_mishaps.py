"""What goes wrong around a run: stopped at a bad moment, data that changed, files that broke."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from everclip import data
from everclip.cli.app import main
from everclip.cli.evaluate import measure
from everclip.data.formats.folders import split_of
from everclip.errors import RunError, UserError
from everclip.runs.run import Run
from tests.pictures import domain_folder, image_folder
from tests.running import configured, run, timeless


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "photos", {"train": 4, "test": 2})


@pytest.fixture
def tokens(folder: Path, toy: str) -> list[str]:
    return [f"data=imagefolder:{folder}", f"model={toy}"]


def test_stopped_between_the_last_checkpoint_and_the_results(tmp_path: Path, tokens: list[str]) -> None:
    whole = run(tmp_path / "run", *tokens)
    (tmp_path / "run" / "results.json").unlink()
    assert timeless(run(tmp_path / "run", *tokens)) == timeless(whole)


def test_a_finished_run_without_a_report_gets_one(tmp_path: Path, tokens: list[str]) -> None:
    run(tmp_path / "run", *tokens)
    assert not (tmp_path / "run" / "report.html").exists()
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").exists()


def unfinished(out: Path) -> None:
    (out / "results.json").unlink()


def test_other_classes_than_when_it_began(tmp_path: Path, folder: Path, tokens: list[str]) -> None:
    run(tmp_path / "run", *tokens)
    unfinished(tmp_path / "run")
    image_folder(tmp_path / "more", {"train": 4, "test": 2}, classes=1)
    for part in ("train", "test"):
        (tmp_path / "more" / part / "red").rename(folder / part / "aqua")
    with pytest.raises(UserError, match="has other classes than when this run began"):
        run(tmp_path / "run", *tokens)


def test_an_exemplar_that_is_gone(
    tmp_path: Path, folder: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", *tokens, "memory.budget=all")
    unfinished(tmp_path / "run")
    (folder / "train" / "red" / "0.png").unlink()
    assert main(["resume", str(tmp_path / "run"), "--changed-data"]) == 2
    assert "1 exemplars of the memory are no longer in the data" in capsys.readouterr().err


def test_bad_input_leaves_the_users_own_folder(tmp_path: Path, tokens: list[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    words = [tokens[0], "model=local-dir:/nonexistent"]
    for out, stays in ((mine, True), (tmp_path / "new", False)):
        with pytest.raises(UserError):
            run(out, *words)
        assert out.exists() == stays
        assert not stays or not list(out.iterdir())


def test_a_failed_run_keeps_its_log(tmp_path: Path, folder: Path, tokens: list[str]) -> None:
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"see the skipped images in run\.log"):
        run(tmp_path / "run", *tokens)
    assert "skipped test/" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize("cache", [0, 100])
@pytest.mark.parametrize("budget", ["0", "12"])
def test_a_task_whose_training_images_are_all_broken(
    tmp_path: Path, folder: Path, tokens: list[str], cache: int, budget: str
) -> None:
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="not one training image of task 1 can be read"):
        run(tmp_path / "run", *tokens, f"loader.cache_mb={cache}", f"memory.budget={budget}")


@pytest.mark.parametrize("method", ["fecam", "slda", "ridge"])
def test_images_all_broken_that_are_first_read_when_a_task_ends(
    tmp_path: Path, folder: Path, tokens: list[str], method: str
) -> None:
    """By a method that trains nothing, where nothing is kept."""
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    words = [f"method={method}", "references=none", "cache.trunk=off", "loader.cache_mb=0"]
    with pytest.raises(RunError, match="not one training image of task 1 can be read"):
        run(tmp_path / "run", *tokens, *words)


@pytest.mark.parametrize("cache", [0, 100])
def test_skipped_images_survive_a_resume(tmp_path: Path, folder: Path, tokens: list[str], cache: int) -> None:
    (folder / "train/red/0.png").write_bytes(b"")
    words = [*tokens, f"loader.cache_mb={cache}", "memory.budget=0"]
    whole = run(tmp_path / "run", *words)
    assert whole["skipped_images"] == ["train/red/0.png"]
    unfinished(tmp_path / "run")
    assert run(tmp_path / "run", *words)["skipped_images"] == ["train/red/0.png"]
    assert (
        "skipped train/red/0.png: no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM"
        in (tmp_path / "run/run.log").read_text()
    )


@pytest.mark.parametrize("gone", [True, False])
def test_a_class_whose_test_images_go_or_come_after_it_was_learned(
    tmp_path: Path, folder: Path, tokens: list[str], gone: bool
) -> None:
    out, red, aside = tmp_path / "run", folder / "test" / "red", tmp_path / "aside"
    words = ["method=ncm", 'scenario.order=["red", "green", "blue", "yellow", "black", "white"]']
    if not gone:
        shutil.move(red, aside)
    run(out, *tokens, *words)
    unfinished(out)
    shutil.move(*((red, aside) if gone else (aside, red)))
    assert main(["resume", str(out), "--changed-data"]) == 0
    row = json.loads((out / "results.json").read_text())["per_class"][0]
    assert row["class"] == "red"
    assert (row["last"] is None) == (row["after_learning"] is None) == gone


@pytest.mark.parametrize("name", [".lock", ".holder", ".config.toml.everclip-0123abcd"])
def test_killed_before_its_config_was_there(tmp_path: Path, tokens: list[str], name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("half")
    assert run(tmp_path / "run", *tokens, "smoke=true")["smoke"]


def test_a_config_left_open_is_resolved(tmp_path: Path, tokens: list[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text('data = "emoji"\n')
    assert Run.read_config(tmp_path / "run").train.epochs == 5


def test_an_out_that_looks_like_a_setting(tmp_path: Path, tokens: list[str]) -> None:
    run(tmp_path / "lr=1e-4", *tokens)
    assert Run.read_config(tmp_path / "lr=1e-4").seed == 0


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("~nosuchuser/x", "a user who has no home folder here: write the path in full"),
        ("x" * 300, "cannot be used (File name too long): give another out"),
    ],
)
def test_an_out_that_cannot_be(
    tmp_path: Path,
    tokens: list[str],
    out: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *tokens, "scenario.tasks=2", "train.steps=1", f"out={out}"]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_checkpoints_are_sorted_by_number(tmp_path: Path, tokens: list[str]) -> None:
    opened = Run(tmp_path, configured(*tokens))
    for stage in (999, 1000, 2):
        (tmp_path / "checkpoints" / f"stage-{stage:03d}").mkdir(parents=True)
    assert [place.name for place in opened.store.places()] == ["stage-002", "stage-999", "stage-1000"]


@pytest.mark.parametrize("method", ["zero_shot", "joint"])
def test_methods_that_use_no_memory_keep_none(tmp_path: Path, tokens: list[str], method: str) -> None:
    assert run(tmp_path / "run", *tokens, f"method={method}", "memory.budget=all")["memory_bytes"] == 0


def test_names_that_are_no_utf_8(folder: Path) -> None:
    for name in (b"caf\xe9", b"train/red/caf\xe9.png"):
        path = (
            os.fsencode(folder / "train") + b"/caf\xe9"
            if b"/" not in name
            else os.fsencode(folder) + b"/" + name
        )
        try:
            os.mkdir(path) if b"." not in name else Path(os.fsdecode(path)).write_bytes(b"")
        except OSError:
            pytest.skip("the file system takes UTF-8 names only")
        with pytest.raises(UserError, match=r"caf\\udce9.* is not a UTF-8 name: rename it"):
            data.load(f"imagefolder:{folder}")
        os.rmdir(path) if b"." not in name else os.remove(path)


def test_layouts_that_are_nearly_right(tmp_path: Path, toy: str) -> None:
    image_folder(tmp_path, {"train": 3, "test": 2}, classes=2)
    (tmp_path / "test").rename(tmp_path / "validation")
    with pytest.raises(
        UserError, match=r'has "train" beside "validation": name the test part "test" or "val"'
    ):
        data.load(f"imagefolder:{tmp_path}")
    assert all(split_of([f"{n}.jpg"]) == {f"{n}.jpg": False} for n in range(30)), (
        "a lone image is for training"
    )


def test_domains_of_one_name(tmp_path: Path) -> None:
    domain_folder(tmp_path, 2)
    (tmp_path / "domain0").rename(tmp_path / "a_b")
    (tmp_path / "domain1").rename(tmp_path / "a b")
    with pytest.raises(UserError, match='are both named "a b"'):
        data.load(f"domainfolder:{tmp_path}")


def test_names_given_for_folders_with_underscores(tmp_path: Path, folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "red").rename(folder / part / "dark_red")
    (tmp_path / "names.txt").write_text("dark_red\tcrimson\n")
    found = data.load(f"imagefolder:{folder}", classnames=str(tmp_path / "names.txt"))
    assert "crimson" in found.class_names


def test_evaluate_says_what_it_does_otherwise(
    tmp_path: Path, tokens: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "run", *tokens)
    fresh = image_folder(tmp_path / "fresh", {"": 3}, classes=2)
    (fresh / "red").rename(fresh / "scarlet")
    measure(str(tmp_path / "run"), f"imagefolder:{fresh}")
    assert '"scarlet" was not learned by ' in caplog.text
    with pytest.raises(UserError, match="--image-size is for models"):
        measure(str(tmp_path / "run"), None, 64)


def test_a_module_that_is_no_source() -> None:
    with pytest.raises(UserError, match=r"module os\.path defines no source: it must"):
        data.load("os.path:x")


def test_a_class_without_test_images_gets_a_report(tmp_path: Path, folder: Path, tokens: list[str]) -> None:
    for path in (folder / "test" / "red").iterdir():
        path.unlink()
    assert main(["train", *tokens, "scenario.tasks=2", "train.steps=1", f"out={tmp_path / 'run'}"]) == 0
    assert "green" in (tmp_path / "run" / "report.html").read_text()


def test_a_folder_given_without_its_source(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert data.load("photos").class_names == data.load("imagefolder:photos").class_names
    with pytest.raises(UserError, match='data "phots" is neither a source nor a folder that exists'):
        data.load("phots")


@pytest.mark.parametrize("size", ["0", "-5", "100000"])
def test_image_sizes_are_bounded(
    folder: Path, toy: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", toy, "--data", f"imagefolder:{folder}", f"--image-size={size}"]) == 2
    assert "use a whole number from 16 to 4096" in capsys.readouterr().err
