"""Read what tells a class from others, in words: a file that some methods can use (ENGINE)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everclip.errors import UserError
from everclip.system.reading import Unreadable, read_json

Differences = dict[str, dict[str, list[str]]]
"""Class name -> other class's name -> differences."""


def read_differences(path: str, names: Sequence[str]) -> Differences:
    """Return the differences of the classes ``names``; other classes of the file are left out.

    Raises:
        UserError: the file cannot be read, or has another form.
    """
    form = 'write {"class": {"other class": ["difference", ...]}}'
    try:
        found: Any = read_json(Path(path))
    except Unreadable as error:
        raise UserError(f"method.descriptions={path} cannot be read ({error}): {form}") from error
    if not isinstance(found, dict):
        raise UserError(f"method.descriptions={path} is no table of classes: {form}")
    known: Differences = {}
    for name in names:
        others = found.get(name, {})
        lists = others.values() if isinstance(others, dict) else [None]
        if not all(
            isinstance(words, list) and words and all(isinstance(w, str) for w in words) for words in lists
        ):
            raise UserError(f'method.descriptions={path}: "{name}" has no table of lists of texts: {form}')
        known[name] = {other: words for other, words in others.items() if other in names}
    return known
