"""The same command gives the same bits, in another process and with several threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import image_folder

THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
"""Several threads, which do not spin while they wait: tests run beside this one."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdro", "finetune"])
def test_two_processes_give_the_same_weights(tmp_path: Path, method: str) -> None:
    pictures = image_folder(tmp_path / "pictures", {"train": 12, "test": 2}, classes=6)
    words = f"scenario.tasks=2 image_size=96 train.steps=4 method={method} memory.budget=12 references=none"
    tokens = [f"data=imagefolder:{pictures}", "model=lite", *words.split()]
    digests = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "everclip", "train", *tokens, f"out={tmp_path / name}"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | THREADS)
        weights = tmp_path / name / "checkpoints" / "stage-001" / "open_clip_model.safetensors"
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
