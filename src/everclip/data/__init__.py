"""Load images, scenarios and memory. ``load`` turns a spec such as ``imagefolder:/path`` into a Dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.config.fields import own_options
from everclip.data.paths import is_readable, spec_of
from everclip.data.sources import Source
from everclip.errors import UserError, suggest
from everclip.system import trust

if TYPE_CHECKING:
    from everclip.config import Config
    from everclip.data.images import Dataset


def source_class(spec: str) -> tuple[type[Source], str | None]:
    """Return the class and the argument that ``SOURCE``, ``SOURCE:ARGUMENT`` or a plain path (``paths.spec_of``) names.
    Raises UserError for an unknown source, or a module that does not define exactly one.

    SOURCE is a file in data/sources, or a module or a file of the user's.
    """
    spec = spec_of(spec)
    name, _, argument = spec.partition(":")
    if ("/" in name or name.startswith((".", "~")) or is_readable(name)) and not trust.is_file(name):
        raise UserError(
            f'data "{spec}" is not there: give a folder of CLASS folders, or a source (everclip datasets)'
        )
    shipped = plugins.names("data/sources")
    if name == spec and name not in shipped and not trust.is_code(name):
        raise UserError(f'data "{spec}" is neither a source nor a folder that exists{suggest(name, shipped)}')
    return plugins.find("data/sources", name, Source), os.path.expanduser(argument) or None


def source(spec: str, options: Mapping[str, Any]) -> tuple[Source, str | None]:
    """Return the source that a spec names, with these options, and the argument. Raises UserError for wrong ones."""
    cls, argument = source_class(spec)
    return cls(own_options(cls.Config, options, None, "source.")), argument


def load(
    spec: str,
    kind: str = "class-incremental",
    classnames: str | None = None,
    templates: str | list[str] | None = None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    pairs: bool = False,
    typed: bool = True,
) -> Dataset:
    """Return the data set that ``spec`` names: ``SOURCE``, ``SOURCE:ARGUMENT`` or a path, as for ``source_class``.

    A config's data is loaded by ``of``.

    Args:
        kind: of the scenario; a source may ship different lists for each.
        classnames, templates: a file's path, or a list of templates (or the name of a shipped one); override the
            source's own.
        model: the spec of the model that is to read the prompts; the source's own prompts are then adapted to it.
        options: the source's own.
        pairs: whether its images may have captions in place of classes.
        typed: whether the user typed ``spec``: a SOURCE that is a module is then imported. A file's spec allows no
            code.

    Raises:
        UserError: code that only a file asks for, unknown source (with a suggestion) or option, whatever the source
            finds wrong, or a name or template that cannot be printed.
    """
    if typed:
        trust.typed(spec)
    found, argument = source(spec, options or {})
    data = _worded(found.load(argument, kind), spec, classnames, templates, model)
    if data.captioned and not pairs:
        raise UserError(f"{spec} has captions and no classes: give images with classes")
    return data


def of(config: Config) -> Dataset:
    """Return the data set of a config. Raises UserError as ``load`` does, and for code that only a file asks for."""
    from everclip.data import scenarios

    found, argument = source(config.data, config.source.options)
    data = found.load(argument, scenarios.build(config.scenario).asks)
    return _worded(data, config.data, config.classnames, config.templates, config.model)


def _worded(
    data: Dataset, spec: str, classnames: str | None, templates: str | list[str] | None, model: str | None
) -> Dataset:
    """Return a data set with the names and prompts that are asked for."""
    from everclip.data import prompts
    from everclip.data import templates as lists
    from everclip.data.formats.folders import check_names, check_texts

    if data.captioned and (classnames is not None or templates):
        given = "templates" if classnames is None else "classnames"
        raise UserError(f"{given}= is for data with classes, and {spec} has captions: leave it out")
    if classnames is not None:
        names = prompts.read_class_names(Path(os.path.expanduser(classnames)), data.class_names)
        data = replace(data, class_names=tuple(check_names(names, classnames)))
    if isinstance(templates, str):
        data = replace(data, templates=prompts.read_templates(lists.file_of(templates)))
    elif templates:
        data = replace(data, templates=tuple(templates))
    elif model is not None and not data.captioned:
        data = lists.suited(data, model)
    check_texts(data, f"data {spec}")
    prompts.warn_of_alike(data.class_names)
    return data
