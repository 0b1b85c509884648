"""Define the errors that are shown in one line."""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real


class UserError(ValueError):
    """Bad input of any kind: a config, a file, a name.

    The message is one line: what is wrong, where, and what to use instead. The command line prints it without a
    traceback and exits with code 2.
    """


def shown(value: object, width: int = 60) -> str:
    """Return a value as text for a one-line message: escaped, and shortened to ``width`` characters."""
    if isinstance(value, str) and value.isprintable():
        text = f'"{value}"'
    else:
        text = "none" if value is None else json.dumps(value, default=str)
    return text if len(text) <= width else text[: width - 3] + "..."


def why(error: Exception) -> str:
    """Return why something failed, on one short line: the system's words, else the error's, else its type."""
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(words.split())[:200] or type(error).__name__


MOST_NAMED = 100
"""Names that a message lists."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean "x"?'`` for the nearest of ``known``, else a list of the first ``MOST_NAMED``.

    Append it to a message, so that the message says what to write instead of a misspelt key, method or model.
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(f'"{name}"' for name in near) + "?"
    more = f" and {len(known) - MOST_NAMED:,} more" if len(known) > MOST_NAMED else ""
    return "; known: " + ", ".join(known[:MOST_NAMED]) + more


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError where ``value``, given as ``name``, is not one of ``known``."""
    if value not in known:
        raise UserError(f'{name} is "{value}"{suggest(value, known)}')


def check_range(name: str, value: float | None, low: int, high: int, what: str = "") -> None:
    """Raise UserError unless ``value``, given as ``name``, is None or lies from ``low`` to ``high``. It must be a whole
    number unless ``what`` describes the number in words."""
    if value is None:
        return
    number = isinstance(value, Real if what else Integral) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        text = f"{value:.10g}" if number else shown(value)
        raise UserError(f"{name} is {text}: use {what or 'a whole number'} from {low} to {high}")


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Raise UserError where this block imports a package of an extra that is not installed.

    Args:
        what: what needs it, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("everclip"):
            raise
        raise UserError(f'{what} needs the package {error.name}: pip install "everclip[{extra}]"') from error


class RunError(RuntimeError):
    """A run cannot go on (a loss that is not finite, no image left). One line; exit code 1."""


class NonFinite(RunError):
    """Features, a loss, a gradient or weights with nan or inf: the settings diverge. A step that raises it has changed
    no parameter."""


_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|can't start new thread"
    r"|failed to map segment",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?(\w+)", re.IGNORECASE)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the chain of its causes, the latest first, each once."""
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def memory_words(error: BaseException) -> str:
    """Say in one line what to do about an error for want of memory; empty for any other error."""
    for cause in causes(error):
        text = str(cause)
        short = isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        # torch raises RuntimeError, safetensors and the loader of shared libraries their own
        if short or (not isinstance(cause, UserError) and _NO_MEMORY.search(text)):
            asked = _ASKED.search(text)
            amount = f" ({asked[1]} {asked[2]} more were requested)" if asked else ""
            return (
                f"not enough memory{amount}: close other programs, raise the limit (ulimit -v), or use a"
                f" smaller model, image_size, train.batch_size or loader.cache_mb; whatever was saved"
                f" before is intact"
            )
    return ""
