"""A wrong shape fails the test that is to blame for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from everclip.losses.distill import distillation


def stretched() -> None:
    """Hand a function a teacher of one picture for two: torch would repeat it."""
    distillation(torch.ones(1, 3), torch.ones(2, 3), 2)


def test_in_a_test() -> None:
    with pytest.raises(TypeCheckError, match=r"distillation(.|\n)*student"):
        stretched()


def test_in_a_process_that_a_test_starts() -> None:
    code = f"from {__name__} import stretched; stretched()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "jaxtyping.TypeCheckError" in done.stderr
