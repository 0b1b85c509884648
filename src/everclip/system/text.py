"""Clean untrusted texts before they reach a terminal, a log or a spreadsheet. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Any

from everclip.errors import UserError

_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing: control characters (C0, DEL, C1), ends of lines, changes of
direction; and halves of surrogate pairs, which cannot be written. What joins the parts of an emoji or of a Persian word
stays."""
_ODD_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_END = re.compile("\r\n|\r|\n")
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""Starts of cells that a spreadsheet would compute (OWASP, "CSV Injection"), full-width forms included."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def printable(text: str) -> str:
    r"""Return the text on one line, with escapes such as ``\x1b`` in place of what a terminal would obey."""
    if text.isprintable():
        return text
    return _ODD.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def lines(text: str) -> list[str]:
    """Return the lines of a text, as an editor counts them: ``str.splitlines`` also cuts at U+2028 and the like."""
    return _END.split(text)


def cleaned(value: Any) -> Any:
    """Return a JSON or TOML value with all texts in it made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(inner) for key, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value


def check(value: Any, where: object) -> None:
    """Refuse a JSON value with a text that a terminal would not only show but obey.

    Args:
        where: what holds it, for the message.

    Raises:
        UserError: naming the first such text, escaped.
    """
    waiting = [value]
    while waiting:  # no recursion: nesting has no limit
        found = waiting.pop()
        if isinstance(found, str) and printable(found) != found:
            raise UserError(
                f'{where} has the text "{shortened(printable(found))}", which holds characters that cannot be'
                " printed: get another copy, or remove them"
            )
        if isinstance(found, dict):
            waiting += [*found, *found.values()]
        elif isinstance(found, list):
            waiting += found


def shortened(text: str, width: int = 80) -> str:
    """Return the text, cut to ``width`` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."


def number_in(text: str) -> float | None:
    """Return a text's number; None if it is not one."""
    try:
        return float(text)
    except ValueError:
        return None


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return a value as JSON for people and programs: what a terminal would obey is escaped as JSON does it."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _ODD_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_text(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV. A text that a spreadsheet would compute has ``'`` before it; numbers stay as they are."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in (header, *rows))
    return file.getvalue()


def _cell(value: object) -> object:
    if value is None or isinstance(value, Number):
        return value
    text = str(value)
    formula = text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return ("'" if formula else "") + printable(text)
