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


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_environment_that_could_not_be_made_is_not_taken_for_one(tmp_path: Path) -> None:
    """As Debian's venv without ensurepip, which fails when it has made its python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\nmkdir -p $3/bin\ntouch $3/bin/python\necho no ensurepip\nexit 1\n")
    fails.chmod(0o755)
    for _ in range(2):
        command = ["make", "-C", str(tmp_path), "setup", f"PYTHON={fails}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 2
        assert "no ensurepip" in found.stdout
        assert not (tmp_path / ".venv" / "bin" / "python").exists()
