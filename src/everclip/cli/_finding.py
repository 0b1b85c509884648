"""What the doctor finds: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor; ``fail`` is what the run in question cannot do without."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""


def free_memory() -> int | None:
    """Bytes of main memory that programs can still have; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
