"""everclip init: a first config for a folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everclip.cli import init
from everclip.cli.app import main
from everclip.config import load_config
from everclip.errors import UserError
from everclip.runs.resolve import resolve
from everclip.training.plan import Plan
from tests.pictures import COLOURS, domain_folder, image_folder, picture
from tests.printed import printed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with six classes in ``photos``."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "photos", {"": 10})
    return tmp_path


def test_the_config_says_how_the_folder_was_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "photos"]) == 0
    out = capsys.readouterr().out.splitlines()
    text = (here / "photos.toml").read_text()
    assert out[-1] == "wrote photos.toml; next: everclip train photos.toml --dry-run"
    for line in out[:-1]:
        assert f"# {line}\n" in text
    assert out[0].startswith(f"data imagefolder:{here}/photos: 6 classes, ")
    assert "a fifth of each class, as there is no test part" in out[0]
    assert "images per class (training+test): black 8+2, " in out[1]
    assert out[2] == "tasks: 3, of 2 classes"


def test_a_dot_in_the_name_of_a_folder_begins_no_ending(here: Path) -> None:
    (here / "photos").rename(here / "photos.2024")
    assert main(["init", "photos.2024"]) == 0
    assert (here / "photos.2024.toml").exists()


@pytest.mark.parametrize("domains", [False, True])
def test_the_config_is_a_plan_as_it_is(here: Path, domains: bool) -> None:
    if domains:
        domain_folder(here / "art")
    folder = "art" if domains else "photos"
    assert main(["init", folder]) == 0
    config = resolve(load_config([f"{folder}.toml"]))
    assert config.defaults == 3
    assert config.memory.per_class == (3 if domains else 1)
    assert config.scenario.kind == ("domain-incremental" if domains else "class-incremental")
    assert len(Plan.of(config).tasks) == 3


def test_it_trains(here: Path, toy: str) -> None:
    assert main(["init", "photos", "-o", "mine.toml"]) == 0
    small = [f"model={toy}", "tune=top:1", "train.epochs=1", "device=cpu", "out=run"]
    assert main(["train", "mine.toml", *small, "--dry-run"]) == 0
    assert main(["train", "mine.toml", *small]) == 0
    assert json.loads((here / "run" / "results.json").read_text())["method"] == "gcl"


def test_the_config_of_a_source_of_ones_own_trains_with_the_command_that_is_printed(
    here: Path, toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the source as it was given, whatever that calls its data set, and works from any folder."""
    source = printed("MySource")
    constant = source.replace('f"my_source:{root}"', '"my_source"')
    assert constant != source
    (here / "my_source.py").write_text(constant, encoding="utf-8")
    (here / "pictures").mkdir()
    for colour in ("blue", "green", "red", "black"):
        for number in range(10):
            picture(COLOURS[colour], number).save(here / "pictures" / f"{colour}-{number}.png")
    assert main(["init", "./my_source.py:pictures", "-o", "own.toml"]) == 0
    command = "everclip train own.toml --trust . --dry-run"
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote own.toml; next: {command}"
    text = (here / "own.toml").read_text()
    assert f'data = "{here}/my_source.py:{here}/pictures"' in text
    assert f"#   {command} " in text
    assert "everclip sweep own.toml --trust . method=" in text
    small = [f"model={toy}", "tune=top:1", "device=cpu"]
    assert main([*command.split()[1:], *small]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main(["train", "../own.toml", "--trust", "..", *small, "--dry-run"]) == 0


@pytest.mark.slow
def test_it_trains_as_it_is(here: Path) -> None:
    assert main(["init", "photos"]) == 0
    assert main(["train", "photos.toml", "--dry-run"]) == 0
    assert main(["train", "photos.toml", "--smoke"]) == 0
    assert len([*here.glob("runs/*/results.json")]) == 1


def test_another_model_where_lite_is_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.models import lite

    def absent() -> None:
        raise UserError("lite is not installed")

    monkeypatch.setattr(lite, "_sources", absent)
    assert main(["init", "photos"]) == 0
    config = load_config(["photos.toml"])
    assert (config.model, config.image_size) == (init.OTHERWISE, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos"], "photos.toml exists and is not replaced: train with it, or use -o ANOTHER.toml"),
        (["photos", "-o", "link.toml"], "link.toml exists and is not replaced: "),
        (["photos", "-o", "no/x.toml"], "the folder no does not exist: make it, or use -o ANOTHER.toml"),
        (["photos", "-o", "x"], "-o x is not a .toml file: use -o x.toml"),
        (["nowhere"], 'data "nowhere" is neither a source nor a folder that exists; known: '),
        (["one"], 'one has one class, "red": a classifier needs two: add a CLASS folder'),
        (["bare"], "task 1 (green, ...) has no test images: add some to its classes"),
        (["birds.npz"], "birds.npz holds features, no pictures: use everclip train data=features:"),
        (["a\nb"], "a\\nb has characters that cannot be printed: rename the folder"),
    ],
)
def test_what_it_refuses_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (here / "photos.toml").write_text("mine")
    (here / "link.toml").symlink_to("nothing")
    image_folder(here / "one", {"": 3}, 1)
    image_folder(here / "bare", {"": 1}, 2)
    image_folder(here / "a\nb", {"": 1}, 2)
    (here / "birds.npz").touch()
    before = sorted(here.iterdir())
    assert main(["init", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(here.iterdir()) == before
    assert (here / "photos.toml").read_text() == "mine"
