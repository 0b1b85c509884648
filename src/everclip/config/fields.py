"""Describe config fields in words: what each accepts, and pydantic's complaints as one line."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from everclip.errors import UserError, shown, suggest


def section(field: FieldInfo) -> type[BaseModel] | None:
    """Return the nested model of a field that is a section, else None."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def leaves(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return every dotted key of a config model with its field, in order, descending into sections."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        inner = section(field)
        found |= leaves(inner, f"{prefix}{name}.") if inner else {prefix + name: field}
    return found


def public(key: str) -> str:
    """Return the key as users write it: ``method.name`` is ``method``."""
    return "method" if key == "method.name" else key


def kinds(annotation: object) -> set[object]:
    """Return the plain types that a field accepts: ``int``, ``float``, ``bool``, ``str``, ``list``, ``NoneType``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds(args[0])
    if origin in (Union, types.UnionType):
        return set().union(*(kinds(arg) for arg in args))
    if origin is Literal:
        return {type(arg) for arg in args}
    return {origin or annotation}


def before(model: type[BaseModel], generation: int = 1) -> dict[str, Any]:
    """Return the options whose default differed in a generation of defaults, with that default.

    A field says so with ``json_schema_extra={"before": VALUE}``, and ``"until": N`` if that holds up to generation N,
    not only in the first.
    """
    return {
        name: extra["before"]
        for name, field in model.model_fields.items()
        if isinstance(extra := field.json_schema_extra, dict)
        and "before" in extra
        and generation <= cast("int", extra.get("until", 1))
    }


def allowed(field: FieldInfo) -> str:
    """Describe the values that a field accepts: ``a number above 0 or none``."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "allowed" in extra:
        return str(extra["allowed"])
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, metadata: Iterable[object]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part.metadata if isinstance(part, FieldInfo) else [part] for part in args[1:]]
        return _words(args[0], [*chain.from_iterable(inner), *metadata])
    if origin in (Union, types.UnionType):
        lists_last = sorted(args, key=lambda arg: get_origin(arg) is list)
        return " or ".join(_words(arg, metadata) for arg in lists_last)
    if origin is Literal:
        return " or ".join(shown(arg) for arg in args)
    if origin is list:
        return f"a list, each {_words(args[0], [])}"
    if origin is dict:
        return "a table of names and values"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(metadata)
    return {str: "text", type(None): "none"}.get(annotation, str(annotation))


def _range(metadata: Iterable[object]) -> str:
    words, metadata = list[str](), [*metadata]
    above = any(isinstance(item, Gt) for item in metadata)
    for item in metadata:
        match item:
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Ge(ge=bound):
                words.append(f"from {bound}")
            case Lt(lt=bound):
                words.append(f"{'and' if above else 'to'} below {bound}")
            case Le(le=bound):
                words.append(f"to {bound}")
    return f" {' '.join(words)}" if words else ""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key; ``lr`` suggests ``train.lr``, a misspelling the nearest key."""
    known = sorted(known)
    inside = [name for name in known if name.rsplit(".", 1)[-1] == key.replace("-", "_")]
    return f"unknown key {shown(key)}{suggest(inside[0] if len(inside) == 1 else key, inside or known)}"


def refuse_unknown(model: type[BaseModel], given: Iterable[str], whose: str) -> None:
    """Refuse the first option that a plug-in does not have. Raises UserError with the nearest name.

    Args:
        whose: the plug-in, such as ``method "gdro"``.
    """
    for name in given:
        if name not in model.model_fields:
            known = suggest(name, model.model_fields) if model.model_fields else "; it has no options"
            raise UserError(f"{whose} has no option {shown(name)}{known}")


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], given: Mapping[str, Any], prefix: str) -> Model:
    """Validate options as the plug-in's model. Raises UserError for a value that is not allowed.

    Args:
        prefix: the section to name in messages, such as ``method.``.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise UserError(f"{prefix}{explain(error, model, given)}") from error


def own_options(
    model: type[Model], given: Mapping[str, Any], section: type[BaseModel] | None, prefix: str
) -> Model:
    """Validate a plug-in's options given in a section, and fill in its defaults for the others.

    Args:
        section: the section, whose own keys may have been meant too.
        prefix: the section's name and a dot.

    Raises:
        UserError: an unknown option, with the nearest name, or a value that is not allowed.
    """
    known = [*(section.model_fields if section else ()), *model.model_fields]
    for name in given:
        if name not in model.model_fields:
            if not known:
                raise UserError(f"unknown key {shown(prefix + name)}: there are no options; leave it out")
            raise UserError(unknown_key(f"{prefix}{name}", [f"{prefix}{other}" for other in known]))
    return checked(model, given, prefix)


def explain(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """Put the first complaint about ``values`` into one line: the key, the value given and what is allowed."""
    first = error.errors(include_url=False)[0]
    names: list[str] = []
    field: FieldInfo | None = None
    inner: type[BaseModel] | None = model
    given: Any = values
    for part in first["loc"]:
        # What follows a field that is not a section is a branch of its union or a place in its list.
        if inner is None or not isinstance(given, Mapping) or part not in given:
            break
        names.append(str(part))
        given = given[part]
        field = inner.model_fields.get(str(part))
        inner = section(field) if field else None
    key = ".".join(names)
    if first["type"] == "extra_forbidden":
        return unknown_key(key, map(public, leaves(model)))
    key = public(key)
    if first["type"] == "missing" and inner is not None:
        return f"{first['loc'][-1]} is not given: use {allowed(inner.model_fields[str(first['loc'][-1])])}"
    if first["type"] == "value_error":
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    if field is None:
        return f"{key or 'config'} is {shown(given)}: {first['msg']}"
    if inner is not None:
        example = next(iter(inner.model_fields), "OPTION")
        return f"{key} is {shown(given)} but it is a section: use {public(f'{key}.{example}')}=VALUE"
    return f"{key} is {shown(given)}: use {allowed(field)}"
