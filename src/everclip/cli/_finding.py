"""Hold what the doctor finds: one line each."""

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
