"""Make standard streams robust: closed streams, full disks, readers that quit, other encodings.

A command's work matters more than its messages. A line that stderr does not take is dropped; if stdout cannot be
written, the command ends with one line, or silently if its reader has quit.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

_ESCAPED = "everclip-escaped"


class Unwritable(Exception):
    """Raised when stdout cannot be written. Not an OSError: commands that handle those mean their own files."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout cannot be written ({error.strerror}): send the output elsewhere")
        self.left = error.errno == errno.EPIPE
        """Whether the reader (head, less) has quit."""


class _Stdout(io.FileIO):
    """Raise Unwritable once. What is still buffered then must not fail again when Python exits."""

    _gone = False

    def write(self, data: object, /) -> int:
        try:
            return len(memoryview(data)) if self._gone else super().write(data)  # pyright: ignore
        except OSError as error:
            self._gone = True
            raise Unwritable(error) from error


class _Stderr(io.FileIO):
    """Let go what cannot be written."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # pyright: ignore[reportArgumentType]
        except OSError:
            return len(memoryview(data))  # pyright: ignore[reportArgumentType]


def prepare() -> None:
    """Wrap the process's own standard streams; replacements that somebody installed stay as they are."""
    codecs.register_error(_ESCAPED, _escaped)
    for number in range(3):  # else the next file that is opened would get the number, and all that is printed
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name, kind, number in (("stdout", _Stdout, 1), ("stderr", _Stderr, 2)):
        old = getattr(sys, name)
        if old is None:
            number = os.open(os.devnull, os.O_WRONLY)  # its own may be another file's by now
        if old is None or (old is getattr(sys, f"__{name}__") and isinstance(old, io.TextIOWrapper)):
            setattr(sys, name, _wrapped(kind(number, "wb", closefd=False), old))


def _wrapped(raw: io.FileIO, old: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """Return a text stream like ``old`` on another raw stream."""
    if old is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", _ESCAPED)
    old.flush()
    plain = raw if old.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        plain,  # pyright: ignore[reportArgumentType]
        old.encoding,
        _ESCAPED,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escape characters that an encoding lacks as JSON does, so that --json output stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k : k + 2].hex()}" for k in range(0, len(units), 2)), error.end
