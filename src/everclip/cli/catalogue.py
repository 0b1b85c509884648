"""everclip methods, policies, scenarios, trackers, tunings: list plug-ins, a line each, or explain one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from everclip import plugins
from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json, summary
from everclip.compare.cells import order
from everclip.config.fields import allowed
from everclip.errors import shown
from everclip.system import trust


def list_all(kind: str, command: str, *uses: str, json: bool, argued: bool = False) -> None:
    """Print all plug-ins of a kind.

    Args:
        command: the everclip command that explains one.
        uses: examples of its use, such as ``method=NAME``.
        argued: whether its docstrings begin with what to give: "imagefolder:PATH - ...".
    """
    found = {name: summary(plugins.docstring(kind, name)) for name in sorted(plugins.names(kind), key=order)}
    if json:
        print_json([{"name": name, "summary": line} for name, line in found.items()])
        return
    rows = [*found.items()]
    if argued:
        rows = [tuple(line.split(" - ", 1)) if " - " in line else (name, line) for name, line in rows]
    print_columns(rows)
    examples = " or ".join(f'"everclip train {use}"' for use in uses)
    print(f'\n"everclip {command} NAME" explains one; {examples} uses it.')


def describe(name: str, find: Callable[[str], type]) -> dict[str, Any]:
    """Return a plug-in's docstring and options, ready for JSON.

    Args:
        find: looks up the plug-in's class, which has a ``Config``, by its name.

    Raises:
        UserError: there is no such plug-in.
    """
    trust.typed(name)
    cls: Any = find(name)
    model: type[BaseModel] = cls.Config
    text = inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""
    return {
        "name": name,
        "summary": summary(text),
        "description": text,
        "options": [
            {
                "name": option,
                "default": None if field.is_required() else field.get_default(),
                "allowed": allowed(field),
                "help": field.description or "",
            }
            | ({"required": True} if field.is_required() else {})
            for option, field in model.model_fields.items()
        ],
    }


def explain(about: Mapping[str, Any], prefix: str, json: bool) -> None:
    """Print what ``describe`` gives; options stand after ``prefix``, such as ``method.``."""
    if json:
        print_json(about)
        return
    print(f"{about['description']}\n")
    rows = []
    for option in about["options"]:
        default = "-" if option.get("required") else shown(option["default"])
        rows.append((f"{prefix}{option['name']}", default, f"{option['help']} ({option['allowed']})"))
    if rows:
        print_columns(rows, ("option", "default", "meaning (what is allowed)"))
    else:
        print("It has no options.")


def _command(
    folder: str, words: tuple[str, str], use: str, explain_one: Callable[[str, bool], None]
) -> Callable[..., None]:
    """Build the command that lists the plug-ins of a folder, or explains one.

    Args:
        words: for several and for one, such as ("the methods", "A method").
        use: an example of its use, as of ``list_all``.
        explain_one: explains the plug-in of this name, in words or as JSON.
    """

    def command(name: str | None = None, /, *, json: Json = False) -> None:
        if name is None:
            list_all(folder, folder.rpartition("/")[2], use, json=json)
        else:
            explain_one(name, json)

    command.__doc__ = f"""List {words[0]}, or explain one with its options.

    Args:
        name: {words[1]}'s name, or a module or file of your own.
    """
    return command


def _method(name: str, json: bool) -> None:
    from everclip.methods.base.registry import method_class

    about = describe(name, method_class)
    recommends = method_class(name).Config.recommends
    explain(about | {"recommends": recommends}, "method.", json)
    if recommends and not json:
        values = " ".join(f"train.{key}={value}" for key, value in recommends.items())
        print(f"\nIts defaults in [train]: {values}.")


def _policy(name: str, json: bool) -> None:
    from everclip.data.policies import policy_class

    explain(describe(name, policy_class), "memory.", json)


def _scenario(name: str, json: bool) -> None:
    from everclip.data.scenarios import scenario_class

    explain(describe(name, scenario_class), "scenario.", json)


def _tracker(name: str, json: bool) -> None:
    from everclip.trackers import section, tracker_class

    explain(describe(name, tracker_class), f"tracker.{section(name)}.", json)


def _tuning(name: str, json: bool) -> None:
    from everclip.models.tunings import tuning_class

    about = describe(name, tuning_class)
    if not json:  # the first option stands after the colon
        for place, option in enumerate(about["options"]):
            key = option["name"]
            option["name"] = f"tuning.{key}" if place else f"tune={name}:{key.upper()}"
    explain(about, "", json)


methods = _command("methods", ("the methods", "A method"), "method=NAME", _method)
policies = _command("data/policies", ("the memory policies", "A policy"), "memory.policy=NAME", _policy)
scenarios = _command("data/scenarios", ("the scenarios", "A scenario"), "scenario.kind=NAME", _scenario)
trackers = _command("trackers", ("the trackers", "A tracker"), "trackers=NAME", _tracker)
tunings = _command("models/tunings", ("the ways of tuning", "A way"), "tune=NAME", _tuning)
