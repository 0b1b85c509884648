"""everclip methods: list what can be written after method=."""

from __future__ import annotations

import inspect
from typing import Any

from everclip import plugins
from everclip.cli._output import print_columns, print_json, summary
from everclip.config.fields import allowed
from everclip.errors import shown
from everclip.methods.base.registry import method_class
from everclip.system import trust


def methods(name: str | None = None, /, *, json: bool = False) -> None:
    """List the methods, or explain one with its options.

    Parameters
    ----------
    name
        A method's name, or the module of one of your own.
    json
        Print JSON.
    """
    if name is not None:
        trust.typed(name)
        _explain(describe(name), json)
        return
    found = {name: summary(plugins.docstring("methods", name)) for name in plugins.names("methods")}
    if json:
        print_json([{"name": name, "summary": line} for name, line in found.items()])
        return
    print_columns(list(found.items()))
    print('\n"everclip methods NAME" explains one; "everclip train method=NAME" trains with it.')


def describe(name: str) -> dict[str, Any]:
    """A method's docstring, options and recommendations, ready for JSON.

    Raises:
        UserError: there is no such method.
    """
    cls = method_class(name)
    text = inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""
    return {
        "name": name,
        "summary": summary(text),
        "description": text,
        "options": [
            {
                "name": option,
                "default": field.get_default(),
                "allowed": allowed(field),
                "help": field.description or "",
            }
            for option, field in cls.Config.model_fields.items()
        ],
        "recommends": cls.Config.recommends,
    }


def _explain(method: dict[str, Any], json: bool) -> None:
    if json:
        print_json(method)
        return
    print(f"{method['description']}\n")
    rows = [
        (f"method.{option['name']}", shown(option["default"]), f"{option['help']} ({option['allowed']})")
        for option in method["options"]
    ]
    if rows:
        print_columns(rows, ("option", "default", "meaning (what is allowed)"))
    else:
        print("It has no options.")
    if method["recommends"]:
        values = " ".join(f"train.{name}={value}" for name, value in method["recommends"].items())
        print(f"\nUnless you say otherwise it trains with {values}.")
