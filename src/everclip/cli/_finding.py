"""Define a finding of the doctor."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor; ``fail`` marks what the run cannot do without."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""


def room(folder: Path, size: float, what: str = "a run") -> Finding:
    """Compare the bytes that ``what`` may take with the free space of the disk that has ``folder``."""
    if not os.access(folder, os.W_OK):
        return Finding("disk", "fail", f"{folder} is not writable", "work in another folder, or use out=PATH")
    free = shutil.disk_usage(folder).free
    text = f"{what} may take {size / GIB:.1f} GiB of {free / GIB:.1f} GiB free in {folder}"
    if size < free:
        return Finding("disk", "ok", text)
    return Finding("disk", "fail", text, "make room, or use out=PATH on another disk")
