"""everclip methods: list what can be written after method=."""

from __future__ import annotations

from everclip.cli._catalogue import describe, explain, list_all
from everclip.methods.base.registry import method_class


def methods(name: str | None = None, /, *, json: bool = False) -> None:
    """List the methods, or explain one with its options.

    Parameters
    ----------
    name
        A method's name, or the module or file of one of your own.
    json
        Print JSON.
    """
    if name is None:
        list_all("methods", "methods", "everclip train method=NAME", json)
        return
    about = describe(name, method_class)
    recommends = method_class(name).Config.recommends
    explain(about | {"recommends": recommends}, "method.", json)
    if recommends and not json:
        values = " ".join(f"train.{key}={value}" for key, value in recommends.items())
        print(f"\nUnless you say otherwise it trains with {values}.")
