"""Define a tracker, and extract the numbers from what is logged."""

from __future__ import annotations

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from everclip.config.sections import Section
from everclip.config.values import flat

if TYPE_CHECKING:
    from everclip.config import Config


class Tracker(ABC):
    """A listener that receives everything written to ``metrics.jsonl``.

    It is made at the run's first event, and again when a stopped run continues.

    Args:
        config: the ``Config`` of its class, from ``tracker.NAME.OPTION``.
        run: the run's config.
        path: the run directory.
    """

    class Config(Section):
        """No options."""

    package: ClassVar[str] = ""
    """A package that it imports and that may be missing (shipped trackers: an extra of the same name); empty: none."""

    def __init__(self, config: Any, run: Config, path: Path) -> None:
        self.config = config
        self.run = run
        self.path = path

    @abstractmethod
    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one line of the log: its event (``start``, ``step``, ``stage``, ...) and fields."""

    @abstractmethod
    def close(self) -> None:
        """Close it: the process is done with the run, which may go on later."""


_FIRST_OF_A_STEP = ("start", "precision", "step")
"""Events that come before or with the numbers of their step. The others come after it, as a finished stage does."""


class Numbers(Tracker):
    """A tracker of curves: it receives each number of an event, under a name such as ``step/loss/gcl``, and the step.

    An event without a step of its own (a finished stage) belongs to the last step logged. From the step ``again`` on, a
    continued run logs again what it had logged before it stopped.
    """

    def __init__(self, config: Any, run: Config, path: Path) -> None:
        super().__init__(config, run, path)
        self._step = 0
        self.again: int | None = None

    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Pass on the numbers of an event."""
        self._step = int(fields.get("global_step", max(self._step, int(fields.get("stage", 0)))))
        if self.again is None:
            self.again = self._step + (event not in _FIRST_OF_A_STEP)
        found = {
            f"{event}/{name}": value
            for name, value in numbers(fields)
            if name not in ("stage", "step", "global_step")
        }
        if found:
            self.add(found, self._step)

    @abstractmethod
    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of one step."""


def numbers(fields: Mapping[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in nested fields with its path: ``{"loss": {"gcl": 1.0}}`` has ``loss/gcl``, a list
    ``row/0``."""
    for key, value in fields.items() if isinstance(fields, Mapping) else enumerate(fields):
        name = f"{prefix}{key}"
        if type(value) in (int, float):
            yield name, float(value)
        elif isinstance(value, Mapping | list):
            yield from numbers(value, f"{name}/")


def settings(config: Config) -> dict[str, Any]:
    """Return the config with dotted keys, for a tracker's table of runs."""
    from everclip.config.values import dump

    return flat(tomllib.loads(dump(config)))
