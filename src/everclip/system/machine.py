"""Measure the machine's free memory, and decide when this process returns memory."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
_KEPT = 1 << 30
_RARELY = (100_000, 50, 50)
_usual: list[tuple[int, int, int]] = []


def free_memory() -> int | None:
    """Return bytes of main memory that this process can still have; None where the system does not say.

    Within a container that is what the machine has free, or what is left of the container's limit if that is less.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return min([free, *_left_in_groups()])


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return bytes that each limited control group around this process may still use (version 2 of these groups)."""
    left = []
    with suppress(OSError, ValueError):
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        inner = root / name.strip("/")
        for folder in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # "max" is no limit; the root has none of the files
                most = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                # pages of files that the system drops first; it counts them as free elsewhere, too
                left.append(max(0, most - used + int(counts.get("inactive_file", 0))))
            if folder == root:
                break
    return left


def peak_resident() -> int:
    """Return the largest number of bytes that this process has had in main memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GB of what this process frees; nothing happens with another C library.

    Otherwise large tensors go back to the system when they are freed, at each step, and every page of the next ones is
    requested and zeroed again: a tenth of a step's time on a CPU (benchmarks/demo.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another library
        return
    for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        mallopt(threshold, _KEPT)


def collect_rarely() -> None:
    """Have Python look for cyclic garbage rarely, until ``collect_as_usual``.

    While packages are imported, whose objects stay, it would look again and again and find nothing, which takes a tenth
    of the import's time (benchmarks/start.md).
    """
    _usual.append(gc.get_threshold())
    gc.set_threshold(*_RARELY)


def collect_as_usual() -> None:
    """End ``collect_rarely``, if it is on; objects that exist by now, mostly of modules, are not looked at again."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual[0])
        _usual.clear()
