"""Show a catalogue of plug-ins: a line each, or one with its docstring and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from everclip import plugins
from everclip.cli._output import print_columns, print_json, summary
from everclip.config.fields import allowed
from everclip.errors import shown
from everclip.system import trust


def list_all(kind: str, command: str, use: str, json: bool) -> None:
    """Print the plug-ins of a kind.

    Args:
        command: of everclip that explains one.
        use: how one is asked for, such as ``everclip train method=NAME``.
    """
    found = {name: summary(plugins.docstring(kind, name)) for name in plugins.names(kind)}
    if json:
        print_json([{"name": name, "summary": line} for name, line in found.items()])
        return
    print_columns(list(found.items()))
    print(f'\n"everclip {command} NAME" explains one; "{use}" uses it.')


def describe(name: str, find: Callable[[str], type]) -> dict[str, Any]:
    """A plug-in's docstring and options, ready for JSON.

    Args:
        find: the plug-in's class by its name, which has a ``Config``.

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
    rows = [
        (
            f"{prefix}{option['name']}",
            "-" if option.get("required") else shown(option["default"]),
            f"{option['help']} ({option['allowed']})",
        )
        for option in about["options"]
    ]
    if rows:
        print_columns(rows, ("option", "default", "meaning (what is allowed)"))
    else:
        print("It has no options.")
