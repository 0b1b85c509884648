"""What the machine has left."""

from __future__ import annotations


def free_memory() -> int | None:
    """Bytes of main memory that programs can still have; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
