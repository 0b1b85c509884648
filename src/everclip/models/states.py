"""Read untrusted state files of ``torch.save``: tensors and plain values within bounds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from everclip.system.reading import Unreadable, open_regular


def read_state(path: Path) -> Any:
    """Read what ``torch.save`` has written, on the CPU. No code in it runs; it takes no more memory than the file says.
    Raises Unreadable."""
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise Unreadable("it is packed, and torch.save does not pack")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # torch.load raises whatever the file makes it raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unreadable(reason if len(reason) <= 160 else reason[:157] + "...") from error
