"""The same command gives the same bits, in another process and with several threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdro", "finetune"])
def test_two_processes_give_the_same_weights(tmp_path: Path, method: str) -> None:
    tokens = [
        "scenario.tasks=[20,80]",
        "train.steps=6",
        f"method={method}",
        "memory.budget=40",
        "references=none",
    ]
    digests = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "everclip", "train", *tokens, f"out={tmp_path / name}"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
        weights = tmp_path / name / "checkpoints" / "stage-001" / "open_clip_model.safetensors"
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
