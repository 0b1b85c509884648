"""Define a finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor; ``fail`` marks what the run cannot do without."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""
