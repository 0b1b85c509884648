"""Read untrusted state files of ``torch.save``: tensors and plain values within bounds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from everclip.system.reading import MIB, Unreadable, open_regular

_ZIP = b"PK\x03\x04"
"""How torch tells an archive from an old file, a pickle with the tensors after it."""
_BYTES = b"\nbytearray\n"
"""How a pickle names ``bytearray``, which makes as many bytes as it is told: torch takes names from lines alone."""


def refuse_larger(file: BinaryIO, old: bool = False) -> None:
    """Refuse a file of ``torch.save`` that would take more memory than it has bytes. Leaves it at its beginning.

    Args:
        old: whether it may be one that torch wrote before version 1.6, which is no archive.

    Raises:
        Unreadable: it would.
        BadZipFile: it is not an archive.
    """
    archived = file.read(len(_ZIP)) == _ZIP
    file.seek(0)
    if old and not archived:
        _refuse_bytes(file)
    else:
        _refuse_packed(file, archived)
    file.seek(0)


def _refuse_packed(file: BinaryIO, archived: bool) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if not archived:  # but one comes after it
            raise Unreadable("it does not begin as an archive of torch.save")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Unreadable("it is packed, and torch.save does not pack")
        if sum(member.file_size for member in members) > file.seek(0, 2):  # some members share bytes
            raise Unreadable("its parts are larger than the file")
        for member in members:
            if member.filename.lower().endswith(".pkl"):  # torch finds it in any case
                with archive.open(member) as pickle:
                    _refuse_bytes(pickle)


def _refuse_bytes(pickle: IO[bytes]) -> None:
    before = b""
    while part := pickle.read(MIB):
        if _BYTES in before + part:
            raise Unreadable("its pickle asks for empty bytes (bytearray), as many as it likes")
        before = part[-len(_BYTES) :]


def read_state(path: Path) -> Any:
    """Read a file of ``torch.save`` onto the CPU. No code in it runs, and it takes no more memory than the file is
    large. Raises Unreadable."""
    try:
        with open_regular(path) as file:
            refuse_larger(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # torch.load raises whatever the file makes it raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unreadable(reason if len(reason) <= 160 else reason[:157] + "...") from error
