"""Send a run's log elsewhere, besides ``metrics.jsonl``: each file in this folder is a tracker, found by its name.

``trackers = ["tensorboard"]`` in a config turns one on. A tracker only observes: its errors become warnings, and the
run continues. Write your own with ``from everclip.trackers import Numbers, Tracker``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.config.fields import checked, refuse_unknown, unknown_key
from everclip.errors import UserError, shown
from everclip.system import trust
from everclip.trackers._base import Numbers, Tracker

if TYPE_CHECKING:
    from everclip.config import Config

log = logging.getLogger("everclip")

__all__ = ["Careful", "Numbers", "Tracker", "section", "start", "tracker_class"]


def tracker_class(name: str) -> type[Tracker]:
    """Return the one Tracker that the plug-in ``name`` defines.

    Raises:
        UserError: no such plug-in, or a module that does not define exactly one.
    """
    return plugins.find("trackers", name, Tracker)


def section(name: str) -> str:
    """Return the key of a tracker's options in ``[tracker]``: its name, the last part of a module's, or the stem of a
    file's."""
    return Path(name).stem if trust.is_file(name) else name.rpartition(".")[2]


def start(config: Config, path: Path) -> list[Careful]:
    """Return the trackers of a config for the run in ``path``; each opens at its first event.

    Raises:
        UserError: no such tracker, its package is not installed, an option is wrong, or it is code that only a file
            asks for.
    """
    named = {section(name): name for name in (*plugins.names("trackers"), *config.trackers)}
    for whose, given in config.tracker.options.items():
        if whose not in named:
            raise UserError(unknown_key(f"tracker.{whose}", [f"tracker.{name}" for name in named]))
        if not isinstance(given, Mapping):
            raise UserError(
                f"tracker.{whose} is {shown(given)} but it is a section: write tracker.{whose}.OPTION=VALUE"
            )
        _options(named[whose], config)
    return [Careful(name, config, path) for name in dict.fromkeys(config.trackers)]


def _options(name: str, config: Config) -> Any:
    """Return the options of a tracker, checked. Raises UserError for an unknown one or a value that is not allowed."""
    model, given = tracker_class(name).Config, config.tracker.options.get(section(name), {})
    refuse_unknown(model, given, f'tracker "{section(name)}"')
    return checked(model, given, f"tracker.{section(name)}.")


def _is_here(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package before a dot is missing
        return False


class Careful:
    """A tracker by name, opened late, and let go with a warning when it fails.

    Raises:
        UserError: as ``start`` does.
    """

    def __init__(self, name: str, config: Config, path: Path) -> None:
        self._class = tracker_class(name)
        if lacking := sorted(self._class.__abstractmethods__):
            raise UserError(
                f'tracker "{name}" has no {" and no ".join(lacking)}: define what Tracker requires'
            )
        package = self._class.package
        if package and not _is_here(package):
            extra = package.partition(".")[0] if trust.is_code(name) else f'"everclip[{name}]"'
            raise UserError(f'trackers has "{name}", which is not installed: pip install {extra}')
        self._name, self._options = name, _options(name, config)
        self._config, self._path = config, path
        self._tracker: Tracker | None = None
        self._failed = False

    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Pass on an event."""
        if self._failed:
            return
        try:
            tracker = self._tracker or self._class(self._options, self._config, self._path)
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
