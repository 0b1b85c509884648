"""everclip trackers: list what can be written after trackers=."""

from __future__ import annotations

from everclip.cli._catalogue import describe, explain, list_all
from everclip.trackers import section, tracker_class


def trackers(name: str | None = None, /, *, json: bool = False) -> None:
    """List the trackers, or explain one with its options.

    Parameters
    ----------
    name
        A tracker's name, or the module or file of one of your own.
    json
        Print JSON.
    """
    if name is None:
        list_all("trackers", "trackers", "everclip train trackers=NAME", json)
        return
    explain(describe(name, tracker_class), f"tracker.{section(name)}.", json)
