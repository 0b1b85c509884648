"""examples/nightly.sh and docs/nightly.md: what a night does, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from everclip.cli.app import build
from tests import versions
from tests.learned import coloured
from tests.pages import ROOT, asked
from tests.versions import COLD, ENDS, WARM

SCRIPT, PAGE = ROOT / "examples" / "nightly.sh", ROOT / "docs" / "nightly.md"
Night = Callable[..., tuple[int, str]]


def test_the_commands_of_the_script_can_be_read(tmp_path: Path) -> None:
    lines = re.sub(r"\\\n", " ", SCRIPT.read_text(encoding="utf-8")).splitlines()
    commands = [line.partition(" > ")[0] for line in lines if line.startswith("everclip ")]
    assert len(commands) == 2
    for words in asked("\n".join(commands).replace('"$next"', "v8").replace("${2:-1}", "1"), tmp_path):
        build().parse_args(words[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("current", [None, "folder", "file"])
def test_without_a_version_in_use_nothing_is_moved(current: str | None, tmp_path: Path) -> None:
    """A folder or a file named ``current`` is none: it may be the only copy of what was learned."""
    (tmp_path / "learning" / "blue").mkdir(parents=True)
    if current == "folder":
        (tmp_path / "current").mkdir()
    elif current == "file":
        (tmp_path / "current").write_text("v1")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    told = f"{tmp_path}/current is not a link to a version: make one, ln -s v1 current\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [[], ["a", "b", "c"]])
def test_a_usage_error_is_bad_input(words: list[str]) -> None:
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "usage: nightly.sh FOLDER [MAX_DROP]\n")


def test_a_class_folder_without_a_picture_is_left_out(tmp_path: Path) -> None:
    """One that has just been made, and one whose broken pictures were removed."""
    (tmp_path / "everclip").write_text("#!/bin/sh\n")
    (tmp_path / "everclip").chmod(0o755)
    (tmp_path / "current").symlink_to("v1")
    new, learning = tmp_path / "new", tmp_path / "learning"
    path = f"{tmp_path}:{os.environ['PATH']}"
    for filled, line in (("", "nothing new"), ("learning", "nothing new"), ("red", "current is v1")):
        (new / "blue").mkdir(parents=True, exist_ok=True)
        if filled == "red":
            (new / "red").mkdir()
            (new / "red" / "1.jpg").touch()
        if filled == "learning":
            (learning / "green").mkdir(parents=True)
        done = subprocess.run(
            [SCRIPT, tmp_path], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"{line}\n")
        assert not learning.exists()
    assert [path.name for path in (tmp_path / "learned" / "v1").iterdir()] == ["red"]


def test_the_job_runs_the_script() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (job,) = yaml.safe_load(text)["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-1].split()[-2:] == ["examples/nightly.sh", "/srv/pets"]
    assert os.access(SCRIPT, os.X_OK)


@pytest.fixture
def night(toy: str, tmp_path: Path) -> Night:
    """Runs the script in ``tmp_path / "pets"``, where v1 knows red and yellow; gives its exit code and last line."""
    pets, programs = tmp_path / "pets", tmp_path / "bin"
    versions.written(versions.first(toy, tmp_path), versions.begin(toy), pets / "v1")
    coloured(pets / "holdout", WARM, 12, 9)
    (pets / "current").symlink_to("v1")
    programs.mkdir()
    (programs / "everclip").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m everclip "$@"\n', encoding="utf-8"
    )
    (programs / "everclip").chmod(0o755)

    def run(drop: int) -> tuple[int, str]:
        path = f"{programs}:{os.environ['PATH']}"
        done = subprocess.run(
            [SCRIPT, pets, str(drop)],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, (done.stderr + done.stdout).splitlines()[-1]

    return run


@pytest.mark.slow
def test_nights(night: Night, tmp_path: Path) -> None:
    """Nothing new; new classes; one, with a copy and a broken picture; a strange one; a gate not met; killed."""
    pets = tmp_path / "pets"

    def state() -> tuple[str, set[str]]:
        return os.readlink(pets / "current"), {path.name for path in (pets / "learned").iterdir()}

    assert night(1) == (0, "nothing new")
    coloured(pets / "new", COLD)
    coloured(pets / "holdout", COLD, 2, 8)
    assert night(100) == (0, "current is v2")
    assert state() == ("v2", {"v2"})
    assert json.loads((pets / "verdict.json").read_text())["gate"]["passed"] is True
    assert not list((pets / "new").iterdir())

    coloured(pets / "new", {"white": ENDS["white"]}, seed=3)
    shutil.copy(pets / "new" / "white" / "1.png", pets / "new" / "white" / "copy.png")
    (pets / "new" / "white" / "0.png").write_text("broken")
    assert night(100) == (1, f"the check ended with 1: see {pets}/check.json")
    assert json.loads((pets / "check.json").read_text())["broken"]["count"] == 1
    (pets / "learning" / "white" / "0.png").unlink()
    coloured(pets / "holdout", {"purple": (150, 30, 160)}, 2, 8)
    code, line = night(100)
    assert (code, line.startswith("error: ")) == (2, True)
    assert "purple" in line
    shutil.rmtree(pets / "holdout" / "purple")
    assert state() == ("v2", {"v2"})
    assert night(100) == (0, "current is v3")

    names = {"pink": WARM["red"], "orange": WARM["yellow"]}  # the old classes under new names
    coloured(pets / "new", names, 40, 3)
    code, line = night(0)
    assert (code, line.startswith("gate not met: ")) == (3, True)
    assert (pets / "v4.verdict.html").is_file()
    assert not (pets / "v4").exists()
    assert state() == ("v3", {"v2", "v3"})

    shutil.rmtree(pets / "learning")
    shutil.move(
        pets / "learned" / "v3", pets / "learning"
    )  # as if the third night was killed after the switch
    (pets / "learning.to").write_text("v3\n")
    assert night(1) == (0, "nothing new")
    assert state() == ("v3", {"v2", "v3"})
