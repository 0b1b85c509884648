"""everclip datasets: what can be written after data=."""

from __future__ import annotations

from everclip import plugins
from everclip.cli._output import print_columns, print_json, summary
from everclip.config.fields import shown
from everclip.errors import UserError, suggest

_KIND = "data/sources"


def datasets(name: str | None = None, /, *, json: bool = False) -> None:
    """List the data sources, or explain one.

    Parameters
    ----------
    name
        A source's name.
    json
        Print JSON.
    """
    names = plugins.names(_KIND)
    if name is None:
        found = {name: summary(plugins.docstring(_KIND, name)) for name in names}
        if json:
            print_json([{"name": name, "summary": line} for name, line in found.items()])
            return
        # A source's docstring starts with what to write: "imagefolder:PATH - ...".
        print_columns(
            [line.split(" - ", 1) if " - " in line else (name, line) for name, line in found.items()]
        )
        print(
            '\n"everclip datasets NAME" explains one; "everclip train data=NAME" or data=NAME:PATH uses it.'
        )
        return
    if name not in names:
        raise UserError(f"unknown data source {shown(name)}{suggest(name, names)}")
    text = plugins.docstring(_KIND, name)
    if json:
        print_json({"name": name, "summary": summary(text), "description": text})
        return
    print(text)
