"""Read DomainNet's lists: lines "DOMAIN/CLASS/FILE LABEL", one file for each domain and part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from everclip.data.prompts import read_lines
from everclip.errors import UserError

MOST_LABEL = 9999


class Row(NamedTuple):
    """One image."""

    key: str
    domain: str
    folder: str
    label: int
    part: str


def read(lists: Iterable[tuple[str, str, Path]]) -> list[Row]:
    """Return the images of (domain, part, file) lists. Raises UserError for other forms, or a class with two labels."""
    rows: list[Row] = []
    label_of: dict[str, tuple[int, str]] = {}
    folder_of: dict[int, str] = {}
    for domain, part, path in lists:
        for number, line in enumerate(read_lines(path, "list", blank=True), 1):
            if not line:
                continue
            here = f"line {number} of {path}"
            key, folder, label = _entry(line, domain, here)
            said = f'{here} gives the class "{folder}" the label {label}'
            known, where = label_of.setdefault(folder, (label, here))
            if known != label:
                raise UserError(f"{said}, but {where} {known}: get the official list")
            if (other := folder_of.setdefault(label, folder)) != folder:
                raise UserError(f'{said}, that of "{other}": get the official list')
            rows.append(Row(key, domain, folder, label, part))
    return rows


def _entry(line: str, domain: str, where: str) -> tuple[str, str, int]:
    """Return path, class folder and label of a line."""
    key, _, label = line.rpartition(" ")
    parts = key.split("/")
    plain = len(parts) == 3 and not {"", ".", ".."} & {*parts} and "\\" not in key and "\0" not in key
    # Python reads no number of thousands of digits
    known = label.isdecimal() and len(label) < 10 and int(label) <= MOST_LABEL
    if not plain or parts[0] != domain or not known:
        raise UserError(f'{where} is {line[:60]!a}: use "{domain}/CLASS/FILE LABEL", or the official list')
    return key, parts[1], int(label)
