"""What is asked of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import resource, sys
import torch
from everclip.system.machine import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.zeros(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    faults = {
        kind: int(
            subprocess.run([sys.executable, "-c", ALLOCATE, kind], capture_output=True, check=True).stdout
        )
        for kind in ("as it is", "kept")
    }
    assert faults["kept"] < faults["as it is"] / 10
