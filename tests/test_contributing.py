"""What CONTRIBUTING.md prints is whole: a plug-in of a kind and its test, in a package outside of everclip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import everclip
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
