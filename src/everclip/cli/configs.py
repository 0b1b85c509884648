"""everclip configs: list the configs that come with the package."""

from __future__ import annotations

from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json
from everclip.config.sources import near, shipped, text
from everclip.errors import UserError, shown


def configs(name: str | None = None, /, *, json: Json = False) -> None:
    """List the configs that come with the package, or show one; ``everclip train NAME`` runs it.

    Args:
        name: A config's name, such as cifar100 or cifar100/gdro-m500.
    """
    names = shipped()
    if name in names:
        if json:
            print_json({"name": name, "title": title(name), "text": text(name)})
        else:
            print(text(name), end="")
        return
    if name is not None:
        raise UserError(f"{shown(name)} is not a shipped config{near(name)}")
    rows = {other: title(other) for other in sorted(names, key=lambda other: ("/" in other, other))}
    if json:
        print_json([{"name": other, "title": what} for other, what in rows.items()])
        return
    print_columns([*rows.items()], ("config", "what it runs"))
    print(
        '\n"everclip configs NAME" shows one, "everclip train NAME" runs it, "everclip doctor --config NAME"'
    )
    print("checks this machine for it. An experiment such as cifar100/gdro-m500 extends its base, cifar100.")


def title(name: str) -> str:
    """Return the first line of a shipped config's header."""
    return text(name).partition("\n")[0].removeprefix("# ").rstrip(".")
