"""Where everclip keeps what it can build again. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from everclip.errors import UserError


def folder() -> Path:
    """The cache folder, created if need be: ``$EVERCLIP_CACHE``, else ``$XDG_CACHE_HOME/everclip``, else
    ``~/.cache/everclip``.

    Raises:
        UserError: the folder cannot be written.
    """
    named = os.environ.get("EVERCLIP_CACHE")
    path = (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everclip"
    )
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"the cache folder {path} cannot be written; set EVERCLIP_CACHE to a folder that can")
    return path
