"""A command line looks for garbage rarely until its model is there; a Python program's settings are left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import toy_clip

_SHOW = """
import gc, sys
from everclip.models.zoo import load
from everclip.system.machine import collect_rarely

usual = gc.get_threshold()
if sys.argv[2] == "command":
    collect_rarely()
    collect_rarely()
    assert gc.get_threshold() > usual
load("local-dir:" + sys.argv[1])
assert gc.get_threshold() == usual
print(gc.get_freeze_count() > 0)
"""


def _frozen(folder: Path, who: str) -> str:
    words = [sys.executable, "-c", _SHOW, str(folder), who]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_a_command_collects_as_usual_once_its_model_is_loaded(tmp_path: Path) -> None:
    assert _frozen(toy_clip(tmp_path), "command") == "True"


@pytest.mark.slow
def test_a_programs_own_garbage_is_not_set_aside(tmp_path: Path) -> None:
    assert _frozen(toy_clip(tmp_path), "program") == "False"


def test_the_command_line_starts_so() -> None:
    code = "import gc, sys; from everclip.__main__ import main; main(); print(gc.get_threshold()[0])"
    found = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert int(found.split()[-1]) > 10_000
