"""What a sweep starts takes no module of the current folder but the packages that are named, and those of
PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everclip.sweep import pool
from everclip.sweep.pool import Child, Watcher, Work
from tests.attacks.plant import payload

METHOD = '''
"""A method of one's own."""
from everclip.methods.gcl import Gcl

class Mine(Gcl):
    """As gcl."""
'''


class _Strict(Watcher):
    def ended(self, child: Child, error: str | None) -> None:
        assert error is None


@pytest.mark.slow
def test_a_sweeps_children_read_no_module_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, marker = tmp_path / "here", tmp_path / "ran"
    payload(
        here / "filelock.py",
        marker,
        "class FileLock: ...\nclass Timeout(Exception): ...\n",
    )
    for package in (tmp_path / "mine", here / "ours"):
        package.mkdir()
        (package / "method.py").write_text(METHOD)
    monkeypatch.chdir(here)
    # no empty entry: to Python that is the current folder
    monkeypatch.setenv(
        "PYTHONPATH", str(tmp_path), prepend=os.pathsep if os.environ.get("PYTHONPATH") else None
    )
    for name in ("mine.method", "ours.method"):
        log = tmp_path / f"log of {name}"
        pool.run([Work("x", ["methods", name], tmp_path / "x", log)], [{}], _Strict())
        assert "A method of one's own." in log.read_text()
    assert not marker.exists()
    # the payload is live: without -P Python runs it
    subprocess.run([sys.executable, "-m", "everclip", "methods", "gdro"], capture_output=True, check=False)
    assert marker.exists()
