"""everclip tunings: list what can be written after tune=."""

from __future__ import annotations

from everclip.cli._catalogue import describe, explain, list_all
from everclip.models.tunings import tuning_class


def tunings(name: str | None = None, /, *, json: bool = False) -> None:
    """List the ways of tuning, or explain one with its options.

    Parameters
    ----------
    name
        A way's name, or the module or file of one of your own.
    json
        Print JSON.
    """
    if name is None:
        list_all("models/tunings", "tunings", "everclip train tune=NAME", json)
        return
    about = describe(name, tuning_class)
    if not json:  # the first option stands after the colon
        for place, option in enumerate(about["options"]):
            key = option["name"]
            option["name"] = f"tuning.{key}" if place else f"tune={name}:{key.upper()}"
    explain(about, "", json)
