"""Bound what one request may ask for, and say what is refused. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from everclip.system.text import printable, shortened

MIB, MEGA = 1 << 20, 10**6
MOST_TOP = 1000
"""Largest number of classes, or of embeddings found, in one answer."""
MOST_TEXT = 1000
"""Largest number of characters of a query."""
MOST_JSON = 64 << 10
"""Largest size of a body of JSON, in bytes."""
SECONDS = 30.0
"""Time within which a body has to arrive, and within which a server that is stopped finishes its requests."""

_FOLDERS = re.compile(r"(?<![\w.~-])~?/(?:[^\s/:;,()\"']+/)*(?=[^\s/])")


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Args:
        body: bytes of an encoded picture.
        pixels: of a picture, as sent and with its shorter side resized; checked before it is decoded.
        waiting: requests being read, waiting or being computed; further ones are told to try again.
    """

    body: int = 16 * MIB
    pixels: int = 50 * MEGA
    waiting: int = 256


class Refused(Exception):
    """A request is not answered.

    Attributes:
        status: the HTTP status.
        message: one line, without a path of this machine.
        again: whether the same request may succeed in a second.
    """

    def __init__(self, status: int, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.status, self.again = status, again
        self.message = printable(" ".join(message.split()))


def without_folders(text: str, *paths: str) -> str:
    """Return a message for clients: on one line, with only the last name of each path.

    Args:
        paths: paths whose folders are left out even if they are relative, or their names contain spaces or brackets.
    """
    folders = {path.rstrip("/").rpartition("/")[0] for path in paths} - {""}
    for folder in sorted(folders, key=len, reverse=True):  # one may be the start of another
        text = re.sub(rf"(?<![\w.~/-]){re.escape(folder)}/", "", text)
    return shortened(printable(" ".join(_FOLDERS.sub("", text).split())), 300)
