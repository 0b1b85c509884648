"""everclip scenarios: list what can be written after scenario.kind=."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass

from everclip.cli._output import print_columns, print_json
from everclip.errors import UserError, shown, suggest


@dataclass(frozen=True)
class ScenarioInfo:
    """One kind of scenario: what it is, its defaults and commands that run it."""

    name: str
    summary: str
    description: str
    defaults: dict[str, str]
    examples: tuple[str, ...]


SCENARIOS = (
    ScenarioInfo(
        "class-incremental",
        "each task brings classes that were not there before",
        "The classes are put in order and cut into tasks. After each task the model is tested on all"
        " classes seen so far, without being told which task an image is from. With tasks=10 the tasks"
        " are as even as can be, the larger ones first; tasks=[50, 10, 10] gives their sizes. The order"
        " is a seed of numpy's legacy permutation (1993 is the field's), seed for one that varies with the"
        " run's seed, given for the data set's own, or a list of all class names.",
        {"scenario.tasks": "10", "scenario.order": "1993"},
        (
            "everclip train scenario.tasks=5",
            "everclip train data=imagefolder:/photos scenario.order=given",
            "everclip train data=imagefolder:/photos 'scenario.tasks=[50, 25, 25]'",
        ),
    ),
    ScenarioInfo(
        "domain-incremental",
        "each task brings the same classes in another style or place",
        "One task per domain, in the order that the data set gives or that scenario.order lists; with"
        " scenario.order=seed it varies with the run's seed. After"
        " each task the model is tested on all domains seen so far. The memory is shared equally among"
        " the domains. It needs a data set with domains: emoji has six styles; your own pictures go into"
        " DOMAIN/CLASS folders.",
        {"scenario.order": "the data set's order of domains"},
        (
            "everclip train scenario.kind=domain-incremental",
            "everclip train data=domainfolder:/pacs scenario.kind=domain-incremental",
            'everclip train my.toml scenario.kind=domain-incremental \'scenario.order=["photo", "sketch"]\'',
        ),
    ),
)


def scenarios(name: str | None = None, /, *, json: bool = False) -> None:
    """List the scenarios, or explain one.

    Parameters
    ----------
    name
        class-incremental or domain-incremental.
    json
        Print JSON.
    """
    found = {info.name: info for info in SCENARIOS}
    if name is None:
        if json:
            print_json([asdict(info) for info in SCENARIOS])
            return
        print_columns([(info.name, info.summary) for info in SCENARIOS])
        print('\n"everclip scenarios NAME" explains one; "everclip train scenario.kind=NAME" runs it.')
        return
    if name not in found:
        raise UserError(f"unknown scenario {shown(name)}{suggest(name, found)}")
    info = found[name]
    if json:
        print_json(asdict(info))
        return
    print(f"{info.name}: {info.summary}\n")
    print(textwrap.fill(info.description, 100) + "\n")
    print_columns(list(info.defaults.items()), ("key", "default"))
    print("\n" + "\n".join(info.examples))
