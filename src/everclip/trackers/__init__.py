"""Send a run's log elsewhere beside ``metrics.jsonl``: each file of this folder is a tracker, found by its name.

``trackers = ["tensorboard"]`` in a config turns one on. A tracker is for looking: what it cannot do is a warning, and
the run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.errors import UserError
from everclip.trackers._base import Tracker

if TYPE_CHECKING:
    from everclip.config import Config

log = logging.getLogger("everclip")

__all__ = ["Tracker", "start"]


def start(config: Config, path: Path) -> list[Tracker]:
    """The trackers of a config for the run in ``path``; each opens with the first thing it is told.

    Raises:
        UserError: no such tracker, its package is not installed, or it is code that only a file asks for.
    """
    return [_Careful(name, config, path) for name in dict.fromkeys(config.trackers)]


class _Careful(Tracker):
    """A tracker by name, opened late, and let go with a warning when it fails."""

    def __init__(self, name: str, config: Config, path: Path) -> None:
        self._module = plugins.load("trackers", name)
        has = vars(self._module)
        if not isinstance(has.get("PACKAGE"), str) or not callable(has.get("start")):
            raise UserError(
                f'module "{name}" is no tracker: it has no PACKAGE or no function start(config, path)'
            )
        if find_spec(self._module.PACKAGE) is None:
            raise UserError(f'trackers has "{name}", which is not installed: pip install "everclip[{name}]"')
        self._name, self._config, self._path = name, config, path
        self._tracker: Tracker | None = None
        self._failed = False

    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Pass on an event."""
        if self._failed:
            return
        try:
            tracker = self._tracker or self._module.start(self._config, self._path)
            self._tracker = tracker
            tracker.log(event, fields)
        except Exception as error:  # whatever another project's package raises
            self._give_up(error)

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._tracker is None or self._failed:
            return
        try:
            self._tracker.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        reason = " ".join(str(error).split())[:200]
        log.warning(
            "%s failed and is disabled for this run: %s: %s", self._name, type(error).__name__, reason
        )
