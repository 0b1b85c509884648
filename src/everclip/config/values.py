"""Turn a config into plain values: nested, flat with dotted keys, and TOML text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from everclip._version import __version__
from everclip.config.fields import before
from everclip.config.models import Config, Section
from everclip.config.sources import WRITTEN


def written(section: Section) -> dict[str, Any]:
    """Convert values to TOML's types: None is left out where it is the default, else ``"none"``."""
    values: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Section):
            inner = written(value)
            if inner or type(value).model_fields:  # no empty table of options
                values[name] = inner
        elif value is not None:
            values[name] = value
        elif (
            name in type(section).model_fields and type(section).model_fields[name].default is not None
        ) or name in before(type(section)):
            values[name] = "none"
    return values


def dump(config: Config) -> str:
    """Render the config as TOML that loads to an equal config."""
    return f"{WRITTEN}{__version__}\n" + tomli_w.dumps(written(config))


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into one with keys ``table.key``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= dotted(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a config's tables to dotted keys; ``method.name`` becomes ``method``."""
    found = dotted(config)
    if "method.name" in found:
        found["method"] = found.pop("method.name")
    return found
