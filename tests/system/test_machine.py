"""What is asked of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from everclip.system.machine import _left_in_groups, free_memory

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


def test_memory_is_what_the_tightest_group_around_has_left(tmp_path: Path) -> None:
    """As the files of control groups say it; the innermost may have no limit, and the root has no files."""
    root, own = tmp_path / "cgroup", tmp_path / "own"
    for place, most, used in (("a", "5000", 3000), ("a/b", "4000", 3500), ("a/b/c", "max", 100)):
        (root / place).mkdir(parents=True)
        (root / place / "memory.max").write_text(f"{most}\n")
        (root / place / "memory.current").write_text(f"{used}\n")
        (root / place / "memory.stat").write_text("anon 7\ninactive_file 250\n")
    own.write_text("1:memory:/old\n0::/a/b/c\n")
    assert _left_in_groups(root, own) == [750, 2250]
    (root / "a/b/memory.current").write_text("9000")
    assert _left_in_groups(root, own) == [0, 2250]
    assert _left_in_groups(root, tmp_path / "none") == []
    free = free_memory()
    assert free is None or free > 0


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
