"""Measure the machine's free memory, and decide when this process returns memory."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
_KEPT = 1 << 30
_RARELY = (100_000, 50, 50)
_usual: list[tuple[int, int, int]] = []


def free_memory() -> int | None:
    """Return bytes of main memory that programs can still have; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


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
