"""Find ways of tuning, one file each, by their file names, and read what the key ``tune`` says.

A way of your own is written with ``from everclip.models.tunings import Tuning``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from everclip import plugins
from everclip.config.fields import allowed, explain, unknown_key
from everclip.config.sources import read_value
from everclip.errors import UserError, shown
from everclip.models.tunings._base import Tuning

__all__ = ["Tuning", "tuning_class", "tuning_of"]


def tuning_class(name: str) -> type[Tuning]:
    """Return the one Tuning that the plug-in ``name`` defines. Raises UserError where there is none."""
    return plugins.find("models/tunings", name, Tuning)


def tuning_of(tune: str, options: Mapping[str, Any] | None = None) -> Tuning:
    """Return the way of tuning that a config asks for, its options checked. Only this function parses ``tune``. Raises
    UserError for an unknown plug-in, option or value.

    Args:
        tune: ``NAME`` or ``NAME:VALUE``, where VALUE is the first field of the plug-in's ``Config``.
        options: its further fields, as given in the section ``tuning``.
    """
    name, _, text = tune.partition(":")
    cls = tuning_class(name)
    fields = cls.Config.model_fields
    first, *further = fields or [""]
    written = f"tune={name}:{first.upper()}" if first else f"tune={name}"
    given = dict(options or {})
    for option in given:
        if option not in further:
            if further and option != first:
                raise UserError(unknown_key(f"tuning.{option}", [f"tuning.{other}" for other in further]))
            raise UserError(f"unknown key {shown(f'tuning.{option}')}: use {written}")
    if text and not first:
        raise UserError(f"tune is {shown(tune)}, and {name} takes no value: use {written}")
    if text:
        given[first] = read_value("tune", text, fields[first])
    try:
        return cls(name, cls.Config.model_validate(given))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        if wrong["loc"][:1] == (first,) and wrong["type"] != "value_error":
            words = f"use {written}, {first.upper()} being {allowed(fields[first])}"
            raise UserError(f"tune is {shown(tune)}: {words}") from error
        raise UserError(f"tuning.{explain(error, cls.Config, given)}") from error
