"""Find a method by its name, and check its options."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.config.fields import before, checked, kinds, refuse_unknown
from everclip.config.models import NEWEST, Config, MethodConfig
from everclip.errors import UserError

if TYPE_CHECKING:
    from everclip.methods.base.method import Method


def method_class(name: str) -> type[Method]:
    """Return the one Method that the plug-in ``name`` defines. Imports it, so torch too.

    Raises UserError: no such plug-in, or a module that does not define exactly one method.
    """
    if name.lower() == "der":
        raise UserError(
            'method "der" is two methods: use der_expand (Dynamically Expandable Representation, Yan 2021)'
            " or dark_er (Dark Experience Replay, Buzzega 2020)"
        )
    plugins.load("methods", name)  # refuses a name before torch is imported
    from everclip.methods.base.method import Method

    return plugins.find("methods", name, Method)


def method_config(config: Config) -> MethodConfig:
    """Return the method's options, checked. Raises UserError for an unknown method, option or value."""
    return options_of(config.method.name, config.method.options, defaults=config.defaults)


def options_of(
    name: str, options: dict[str, Any], prefix: str = "method.", defaults: int = NEWEST
) -> MethodConfig:
    """Return the checked options of the method ``name``; those not given take the defaults of generation ``defaults``.

    Messages name them under ``prefix``. Raises UserError: an unknown method, option or value.
    """
    cls = method_class(name).Config
    refuse_unknown(cls, options, f'method "{name}"')
    return checked(cls, options if defaults == NEWEST else _completed(cls, options, defaults), prefix)


def _completed(cls: type[MethodConfig], options: dict[str, Any], defaults: int) -> dict[str, Any]:
    """Return ``options``, with the defaults of a generation for those not given; also for those of a method that this
    one wraps."""
    options = dict(options)
    for name, value in before(cls, defaults).items():
        open_ = "auto" if NoneType in kinds(cls.model_fields[name].annotation) else None
        if options.get(name, open_) == open_:
            options[name] = value
    if cls.wraps is not None:
        fields = cls.model_fields
        inner, given = (options.get(name, fields[name].default) for name in cls.wraps)
        if isinstance(inner, str) and inner != "none" and isinstance(given, dict):
            # tables of options hold plain values, and "none" for None
            known = before(method_class(inner).Config, defaults)
            old = {name: "none" if value is None else value for name, value in known.items()}
            options[cls.wraps[1]] = old | given
    return options
