"""everclip: teach a CLIP model new classes and new domains without forgetting the old ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from everclip._version import __version__

if TYPE_CHECKING:
    from everclip.learner import Learner
    from everclip.runs.finished import load_runs

__all__ = ["Learner", "__version__", "load_runs"]

_LAZY = {"Learner": "everclip.learner", "load_runs": "everclip.runs.finished"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import everclip`` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module everclip has no attribute {name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
