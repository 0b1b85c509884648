"""everclip scenarios: list what can be written after scenario.kind=."""

from __future__ import annotations

from everclip.cli._catalogue import describe, explain, list_all


def scenarios(name: str | None = None, /, *, json: bool = False) -> None:
    """List the scenarios, or explain one with its options.

    Parameters
    ----------
    name
        A scenario's name, or the module or file of one of your own.
    json
        Print JSON.
    """
    if name is None:
        list_all("data/scenarios", "scenarios", "everclip train scenario.kind=NAME", json)
    else:
        from everclip.data.scenarios import scenario_class

        explain(describe(name, scenario_class), "scenario.", json)
