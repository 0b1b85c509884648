"""everclip policies: list what can be written after memory.policy=."""

from __future__ import annotations

from everclip.cli._catalogue import describe, explain, list_all

_KIND = "data/policies"


def policies(name: str | None = None, /, *, json: bool = False) -> None:
    """List the memory policies, or explain one with its options.

    Parameters
    ----------
    name
        A policy's name, or the module or file of one of your own.
    json
        Print JSON.
    """
    if name is None:
        list_all(_KIND, "policies", "everclip train memory.policy=NAME", json)
        return
    from everclip.data.policies import policy_class

    explain(describe(name, policy_class), "memory.", json)
