"""What a user can do wrong, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input of any kind: a config, a file, a name.

    The message is one line: what is wrong, where, and what to write instead. The command line prints it without a
    traceback and exits with code 2.
    """


def suggest(word: str, known: Iterable[str], most: int = 3) -> str:
    """``'; did you mean "x"?'`` for the nearest of ``known``, else a list of what there is.

    Returns a text to append to a message, so that a misspelt key, method or model always says what to write.
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=most, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(f'"{name}"' for name in near) + "?"
    return "; known: " + ", ".join(known)


class RunError(RuntimeError):
    """A run cannot go on (a loss that is not finite, no image left). One line; exit code 1."""
