"""Load images, scenarios and memory. ``load`` turns a spec such as ``imagefolder:/path`` into a Dataset."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everclip import plugins
from everclip.system import trust

if TYPE_CHECKING:
    from types import ModuleType

    from everclip.config import Config
    from everclip.data.images import Dataset


def source(spec: str) -> tuple[ModuleType, str | None]:
    """The module and the argument that ``SOURCE`` or ``SOURCE:ARGUMENT`` names; SOURCE is a file in data/sources.

    Raises:
        UserError: unknown source, with a suggestion.
    """
    from everclip.errors import UserError

    name, _, argument = spec.partition(":")
    folder = Path(spec).is_dir() and name not in plugins.names("data/sources")
    if folder or "/" in name or name.startswith((".", "~")):
        raise UserError(
            f'data "{spec}" names no source: write data=imagefolder:{spec} or domainfolder:{spec}'
        )
    found = plugins.load("data/sources", name)
    if not callable(vars(found).get("load")):
        raise UserError(f'module "{name}" is no data source: it has no function load(argument, kind)')
    return found, os.path.expanduser(argument) or None


def load(
    spec: str,
    kind: str = "class-incremental",
    classnames: str | None = None,
    templates: str | list[str] | None = None,
    model: str | None = None,
) -> Dataset:
    """The data set that ``spec`` names: ``SOURCE`` or ``SOURCE:ARGUMENT``, where SOURCE is a file in data/sources.

    It is taken for what the user wrote: a SOURCE that is a module is imported. A config's data is loaded by ``of``.

    Args:
        kind: of the scenario; a source may ship different lists for each.
        classnames, templates: a file's path, or a list of templates (or the name of a shipped one); override the
            source's own.
        model: the spec of the model that is to read the prompts; the source's own are then suited to it.

    Raises:
        UserError: unknown source (with a suggestion), whatever the source finds wrong, or a name or template that
            cannot be printed.
    """
    trust.typed(spec)
    return _load(spec, kind, classnames, templates, model)


def of(config: Config) -> Dataset:
    """The data set of a config. Raises UserError as ``load`` does, and for code that only a file asks for."""
    from everclip.data import scenarios

    return _load(
        config.data, scenarios.lists(config.scenario), config.classnames, config.templates, config.model
    )


def _load(
    spec: str, kind: str, classnames: str | None, templates: str | list[str] | None, model: str | None
) -> Dataset:
    from everclip.data import prompts
    from everclip.data import templates as lists
    from everclip.data.formats.folders import check_names, check_texts

    module, argument = source(spec)
    data: Dataset = module.load(argument, kind)
    if classnames is not None:
        names = prompts.read_class_names(Path(os.path.expanduser(classnames)), data.class_names)
        data = replace(data, class_names=tuple(check_names(names, classnames)))
    if isinstance(templates, str):
        data = replace(data, templates=prompts.read_templates(lists.file_of(templates)))
    elif templates:
        data = replace(data, templates=tuple(templates))
    elif model is not None:
        data = lists.suited(data, model)
    check_texts(data, f"data {spec}")
    prompts.warn_of_alike(data.class_names)
    return data
