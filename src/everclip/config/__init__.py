"""Load the config of a run: what can be set, where values come from, and how they are filled in.

Values come from the defaults in ``models``, TOML files (``extends`` names the
file to start from) and ``key=value`` on the command line; later ones win. Without a file the base is the shipped
``configs/default.toml``. What belongs to a choice goes with it: ``method=X`` drops another method's
options, ``model=X`` another model's ``image_size``; ``train.steps`` and ``train.epochs`` replace each
other, and so do ``memory.budget`` and ``memory.per_class``. ``runs.resolve`` then fills in what was left open.

This module imports no torch, so that ``everclip --help`` is fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from everclip.config.fields import explain, leaves, public
from everclip.config.models import Config, MethodChoice, MethodConfig
from everclip.config.sources import Layer, is_override, merge, overrides, read_layers, shipped
from everclip.config.values import written
from everclip.errors import UserError
from everclip.system import trust

__all__ = [
    "CARRIED_OUT",
    "Config",
    "MethodChoice",
    "MethodConfig",
    "config_hash",
    "essence",
    "known_keys",
    "load_config",
    "shipped",
]


def known_keys() -> list[str]:
    """List every dotted key, in order, without the method's own options (``method.OPTION``)."""
    return [public(key) for key in leaves(Config)]


def load_config(tokens: Sequence[str], below: Sequence[str] = ()) -> Config:
    """Build the config that command-line tokens describe, not yet resolved.

    Args:
        tokens: the name of a shipped config or the path of a .toml file (optional, first), then KEY=VALUE.
        below: KEY=VALUE that the tokens override, as they override a file's.

    Raises:
        UserError: with the key, the value given, what is allowed, and the file it came from, if any.
    """
    tokens = list(tokens)
    keys = {key: field for key, field in leaves(Config).items() if key != "method.name"}
    first = tokens.pop(0) if tokens and not is_override(tokens[0]) else None
    given = [overrides(part, keys) for part in (below, tokens)]
    for layer in given:
        trust.typed([*trust.in_config(layer)])
        _checked(layer, "")
    # A file of the user's starts from the defaults above, not from the demonstration.
    base = {"model": Config().model, "method": {"name": Config().method.name}}
    layers = read_layers("default" if first is None else first, Path(), _checked, base)
    return _checked(reduce(merge, given, layers), "")


def _checked(values: Layer, where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(where + explain(error, Config, values)) from error


CARRIED_OUT = (
    "device",
    "out",
    "trackers",
    "tracker",
    "checkpoint",
    "distributed",
    "defaults",
    "references",
    "evaluate",
    "loader",
    "cache.ram_mb",
    "cache.shared",
)
"""On what a run computes, where it is written, who is told of it, how often it is saved, how processes share it, which
defaults have filled it in, what it is measured against and tested on, how images are read and where activations are
kept: none of it changes what the method of a resolved config computes."""


def essence(config: Config) -> Config:
    """Return the config with ``CARRIED_OUT`` at its defaults: configs of equal essence describe the same run."""
    usual = Config()
    update: dict[str, Any] = {}
    for key in CARRIED_OUT:
        section, _, name = key.partition(".")
        value = getattr(usual, section)
        if name:
            value = update.get(section, getattr(config, section)).model_copy(
                update={name: getattr(value, name)}
            )
        update[section] = value
    return config.model_copy(update=update)


def config_hash(config: Config) -> str:
    """Hash the config's essence to 16 hexadecimal digits."""
    text = tomli_w.dumps(written(essence(config)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
