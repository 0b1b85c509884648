"""Filling in what a config leaves open, from the method and the model it names."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from everclip import plugins
from everclip.config.fields import before, explain, kinds, shown
from everclip.config.models import NEWEST, Config, MethodChoice, MethodConfig, Section, Train
from everclip.config.sources import one_length
from everclip.errors import UserError, suggest

if TYPE_CHECKING:
    from everclip.methods.base.method import Method

_GLOBAL: dict[str, Any] = {"epochs": 5, "lr_head": 1e-3}


def method_class(name: str) -> type[Method]:
    """The one Method that the plug-in ``name`` defines. Imports it, so torch too.

    Raises:
        UserError: no such plug-in, or a module that does not define exactly one method.
    """
    if name.lower() == "der":
        raise UserError(
            'method "der" is two methods: write der_expand (Dynamically Expandable Representation, Yan 2021)'
            " or dark_er (Dark Experience Replay, Buzzega 2020)"
        )
    module = plugins.load("methods", name)
    from everclip.methods.base.method import Method

    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = " and ".join(item.__name__ for item in found) or "no method"
        raise UserError(
            f"module {name} defines {names}: it must define one subclass of everclip.methods.base.method.Method"
        )
    return found[0]


def method_config(config: Config) -> MethodConfig:
    """The method's options, checked. Raises UserError for an unknown method, option or value."""
    return options_of(config.method.name, config.method.options, defaults=config.defaults)


def options_of(
    name: str, options: dict[str, Any], prefix: str = "method.", defaults: int = NEWEST
) -> MethodConfig:
    """Options of the method ``name``, checked; ``prefix`` is where a message says they stand.

    Args:
        defaults: the generation of defaults that fills in what is not given.

    Raises:
        UserError: an unknown method, option or value.
    """
    cls = method_class(name).Config
    unknown = [option for option in options if option not in cls.model_fields]
    if unknown:
        known = suggest(unknown[0], cls.model_fields) if cls.model_fields else "; it has no options"
        raise UserError(f'method "{name}" has no option {shown(unknown[0])}{known}')
    given = options if defaults == NEWEST else _completed(cls, options)
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{prefix}{explain(error, cls, given)}") from error


def _completed(cls: type[MethodConfig], options: dict[str, Any]) -> dict[str, Any]:
    """``options``, those not given as ``defaults = 1`` has them; also those of a method that this one wraps."""
    options = dict(options)
    for name, value in before(cls).items():
        open_ = "auto" if NoneType in kinds(cls.model_fields[name]) else None
        if options.get(name, open_) == open_:
            options[name] = value
    if cls.wraps is not None:
        fields = cls.model_fields
        inner, given = (options.get(name, fields[name].default) for name in cls.wraps)
        if isinstance(inner, str) and inner != "none" and isinstance(given, dict):
            # their values are plain ones, and None is "none" among them
            known = before(method_class(inner).Config)
            old = {name: "none" if value is None else value for name, value in known.items()}
            options[cls.wraps[1]] = old | given
    return options


def resolve(config: Config) -> Config:
    """The config with nothing left open: train values and the method's options filled in. Idempotent.

    A train value is the user's, else the method's recommendation, else the model's, else a global default
    (5 epochs; heads learn at 1e-3). ``image_size`` stays None for the model's own.

    Every default is filled in here as the generation ``config.defaults`` had it. So what is resolved has the same
    values in any later version.
    """
    from everclip.models.catalogue import recommended

    options = method_config(config)
    given = {
        name: value for name, value in _set(config.train).items() if value is not None or name == "clip_norm"
    }
    usual = _GLOBAL if config.defaults == NEWEST else {**_GLOBAL, "lr_head": None}
    values = one_length(usual, recommended(config.model, before=config.defaults < NEWEST))
    advice = options.recommends
    if config.defaults < NEWEST and options.recommended_before is not None:
        advice = options.recommended_before
    values = one_length(one_length(values, advice), given)
    if values["lr_head"] is None:  # as it was: tied to another rate
        values["lr_head"] = float(f"{10 * values['lr']:.6g}")
    earlier = before(Config) if config.defaults < NEWEST else {}
    return config.model_copy(
        update={name: value for name, value in earlier.items() if name not in config.model_fields_set}
        | {
            "train": Train(**(Train().model_dump() | values)),
            "method": MethodChoice.model_validate({"name": config.method.name} | written(options)),
        }
    )


def _set(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.model_fields_set}


def written(section: Section) -> dict[str, Any]:
    """Values as TOML has them: without None where that is the default, else ``"none"``."""
    values: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Section):
            values[name] = written(value)
        elif value is not None:
            values[name] = value
        elif type(section).model_fields[name].default is not None or name in before(type(section)):
            values[name] = "none"
    return values
