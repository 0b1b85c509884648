"""Pictures and versions that tests of updates share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everclip import data as sources
from everclip.data.images import Dataset
from everclip.system.progress import Progress
from everclip.updating.core import Options, Outcome, update
from everclip.updating.start import begin, load
from everclip.updating.state import State
from everclip.updating.versions import write_next
from tests.learned import coloured

WARM = {"red": (220, 40, 40), "yellow": (230, 220, 50)}
COLD = {"blue": (40, 60, 220), "green": (40, 180, 60)}
ENDS = {"black": (15, 15, 15), "white": (240, 240, 240)}


def colours(root: Path, classes: dict[str, tuple[int, int, int]], count: int = 6, seed: int = 0) -> Dataset:
    """A data set of very noisy pictures in a folder of bare classes."""
    return sources.load(coloured(root, classes, count, seed), "addition")


def updated(state: State, new: Dataset, test: Dataset | None = None, **options: Any) -> Outcome:
    """An update; old classes may lose anything unless it is said."""
    given = {"max_drop": 100.0, "exemplars": 4, "seed": 0, "unmeasured": True} | options
    return update(state, new, test, Options(**given), Progress())


def first(toy: str, tmp_path: Path) -> Outcome:
    """A version that knows two colours."""
    state = begin(toy)
    return updated(state, colours(tmp_path / "warm", WARM), colours(tmp_path / "warm-test", WARM, 4, 9))


def written(outcome: Outcome, before: State, folder: Path) -> State:
    """The version on disk, read again."""
    write_next(outcome, before, folder)
    return begin(str(folder))


__all__ = ["COLD", "ENDS", "WARM", "begin", "colours", "first", "load", "updated", "written"]
