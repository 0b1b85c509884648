"""Read untrusted state files of ``torch.save``: tensors and plain values within bounds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from everclip.system.reading import Unreadable, open_regular


def refuse_packed(file: BinaryIO) -> None:
    """Refuse an archive of ``torch.save`` that would take more memory than the file has bytes. Raises Unreadable, or
    BadZipFile where it is not an archive. Leaves the file at its beginning."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Unreadable("it is packed, and torch.save does not pack")
        if sum(member.file_size for member in members) > file.seek(0, 2):  # some members share bytes
            raise Unreadable("its parts are larger than the file")
    file.seek(0)


def read_state(path: Path) -> Any:
    """Read a file of ``torch.save`` onto the CPU. No code in it runs, and it takes no more memory than the file is
    large. Raises Unreadable."""
    try:
        with open_regular(path) as file:
            refuse_packed(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # torch.load raises whatever the file makes it raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unreadable(reason if len(reason) <= 160 else reason[:157] + "...") from error
