"""The files that CONTRIBUTING.md prints."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

_TEXT = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = [
    textwrap.dedent(found).lstrip("\n")
    for found in re.findall(r"(?:^ {4,}\S.*\n|^\n+(?= {4,}\S))+", _TEXT, re.MULTILINE)
]
"""Indented blocks, as they stand."""


def printed(cls: str) -> str:
    """The file that defines a class."""
    (found,) = [block for block in BLOCKS if f"class {cls}(" in block]
    return found
