"""everclip: teach a CLIP model new classes and new domains without forgetting the old ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from everclip._version import __version__

if TYPE_CHECKING:
    from everclip.learner import Learner
    from everclip.notebook import train
    from everclip.runs.tables import load_confusion, load_per_class, load_predictions, load_runs

__all__ = [
    "Learner",
    "__version__",
    "load_confusion",
    "load_per_class",
    "load_predictions",
    "load_runs",
    "train",
]

_LAZY = {"Learner": "everclip.learner", "train": "everclip.notebook"} | dict.fromkeys(
    ("load_confusion", "load_per_class", "load_predictions", "load_runs"), "everclip.runs.tables"
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import everclip`` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module everclip has no attribute {name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
