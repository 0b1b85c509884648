"""List model names, and find the nearest ones to an unknown name."""

from __future__ import annotations

import difflib

from everclip.models.catalogue import LITE
from everclip.models.foreign import open_clip

NEAREST = 3


def every() -> list[str]:
    """Return all specs with weights: ``lite``, and open_clip's as ``NAME:TAG``, in open_clip's order."""
    return [LITE, *(f"{name}:{tag}" for name, tag in open_clip.list_pretrained())]


def unknown(spec: str) -> str:
    """Return the message for a spec that names no model: the three nearest, and the command that lists all."""
    if "/" in spec or "\\" in spec:
        return (
            f'model "{spec}" is neither a folder nor a known name: use NAME:TAG (everclip models) or'
            " local-dir:FOLDER"
        )
    *near, last = difflib.get_close_matches(spec, every(), n=NEAREST, cutoff=0.0)
    nearest = f"{', '.join(near)} and {last} (everclip models TEXT lists all that contain TEXT)"
    return f'unknown model "{spec}"; the nearest are {nearest}'
