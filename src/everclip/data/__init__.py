"""Images, scenarios, memory and loading. ``load`` turns a spec such as ``imagefolder:/path`` into a Dataset."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everclip import plugins

if TYPE_CHECKING:
    from everclip.data.images import Dataset


def load(
    spec: str,
    kind: str = "class-incremental",
    classnames: str | None = None,
    templates: str | list[str] | None = None,
) -> Dataset:
    """The data set that ``spec`` names: ``SOURCE`` or ``SOURCE:ARGUMENT``, where SOURCE is a file in data/sources.

    Args:
        kind: of the scenario; a source may ship different lists for each.
        classnames, templates: a file's path, or a list of templates; override the source's own.

    Raises:
        UserError: unknown source (with a suggestion), or whatever the source finds wrong.
    """
    from everclip.data import prompts
    from everclip.data.folders import check_names
    from everclip.errors import UserError

    name, _, argument = spec.partition(":")
    if "/" in name or name.startswith((".", "~")):
        raise UserError(
            f'data "{spec}" names no source: write data=imagefolder:{spec} or domainfolder:{spec}'
        )
    if Path(spec).is_dir() and name not in plugins.names("data/sources"):
        raise UserError(
            f'data "{spec}" names no source: write data=imagefolder:{spec} or domainfolder:{spec}'
        )
    source = plugins.load("data/sources", name)
    if "load" not in vars(source):
        raise UserError(f'module "{name}" is no data source: it has no function load(argument, kind)')
    data: Dataset = source.load(os.path.expanduser(argument) or None, kind)
    if classnames is not None:
        names = prompts.read_class_names(Path(os.path.expanduser(classnames)), data.class_names)
        data = replace(data, class_names=tuple(check_names(names, classnames)))
    if isinstance(templates, str):
        data = replace(data, templates=prompts.read_templates(Path(os.path.expanduser(templates))))
    elif templates:
        data = replace(data, templates=tuple(templates))
    prompts.warn_of_alike(data.class_names)
    return data
