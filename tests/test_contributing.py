"""What CONTRIBUTING.md prints is whole: a plug-in of a kind and its test, in a package outside of everclip; and
``make setup`` where the environment cannot be made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import everclip
from tests.pages import ROOT
from tests.printed import BLOCKS, printed

IMPORT = re.compile(r"^from my_package\.(\w+) import (\w+)$", re.MULTILINE)


@pytest.mark.slow
def test_each_printed_plug_in_passes_its_printed_test(tmp_path: Path) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    names = []
    for block in BLOCKS:
        if found := IMPORT.search(block):
            name, cls = found.groups()
            (package / f"{name}.py").write_text(printed(cls))
            (tmp_path / f"test_{name}.py").write_text(block)
            names.append(name)
    assert names == ["my_method", "newest", "my_source", "shots"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(everclip.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "4 passed" in found.stdout, found.stdout


def set_up(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """``make setup`` where the Python is this script, in a copy of what it reads."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "python").chmod(0o755)
    command = ["make", "-C", str(folder), "setup", "PYTHON=./python"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_environment_that_could_not_be_made_is_not_taken_for_one(tmp_path: Path) -> None:
    """As Debian's venv without ensurepip, which fails when it has made its python."""
    venv = "mkdir -p $3/bin\ntouch $3/bin/python\necho no ensurepip\nexit 1"
    for _ in range(2):
        found = set_up(tmp_path, f'[ "$1" = -c ] && exec {sys.executable} "$@"\n{venv}')
        assert found.returncode == 2
        assert "no ensurepip" in found.stdout
        assert not (tmp_path / ".venv" / "bin" / "python").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_old_python_makes_no_environment(tmp_path: Path) -> None:
    """What it makes would be taken by the next call, with a newer one too."""
    old = "import sys; sys.version_info = (3, 10, 13); exec(sys.argv[1])"
    found = set_up(tmp_path, f'[ "$1" = -c ] && exec {sys.executable} -c "{old}" "$2"\nmkdir -p $3/bin')
    assert found.returncode == 2
    said = "./python is not Python 3.11 or newer: name one that is here, as in make setup PYTHON=python3.12"
    assert said in found.stderr
    assert not (tmp_path / ".venv").exists()
