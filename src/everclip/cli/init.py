"""everclip init: write a commented config for a folder of pictures."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from everclip.cli._options import Json
from everclip.cli._output import print_json, print_lines
from everclip.errors import UserError
from everclip.system.text import printable

OTHERWISE = "ViT-B-32:laion2b_s34b_b79k"
"""The model to suggest if ``lite`` is not installed."""


def init(
    photos: str,
    *,
    out: Annotated[str | None, Parameter(name=["--out", "-o"])] = None,
    json: Json = False,
) -> None:
    """Write a commented config for a folder of pictures, ready for everclip train, and say how the folder was read.

    Args:
        photos: The folder, with CLASS folders, train/CLASS and test/CLASS, or DOMAIN/CLASS; or SOURCE:ARGUMENT.
        out: The file to write; default: the folder's name with .toml. An existing file is never replaced.
    """
    from everclip import data
    from everclip.config import Config
    from everclip.models import weights
    from everclip.models.catalogue import FEATURES, LITE
    from everclip.runs.resolve import resolve
    from everclip.runs.starter import starter
    from everclip.system import trust
    from everclip.system.atomic import write_atomic
    from everclip.system.reading import parse_toml
    from everclip.training.plan import Plan

    spec = _absolute(photos)
    if printable(spec) != spec:
        raise UserError(f"{printable(photos)} has characters that cannot be printed: rename the folder")
    if spec.startswith(FEATURES):
        raise UserError(f"{photos} holds features, no pictures: use everclip train data={spec} method=ridge")
    place = Path(spec.rpartition(":")[2])
    path = _free(out or f"{place.name if place.is_dir() else place.stem}.toml")
    model = LITE if weights.are_here(LITE) else OTHERWISE
    allowed = [trust.OPTION, str(path.parent)] if trust.in_config({"data": spec}) else []
    words = shlex.join([str(path), *allowed])
    made = starter(data.load(spec), spec, model, words)
    Plan.of(resolve(Config.model_validate(parse_toml(made.text))))  # refuses what training would refuse
    try:
        write_atomic(path, made.text, new=True)
    except OSError as error:  # also where it exists by now
        raise UserError(f"{path} cannot be written ({error.strerror}): use -o ANOTHER.toml") from error
    if json:
        print_json({"config": str(path), "read": list(made.lines)})
        return
    print_lines(made.lines)
    print(f"wrote {path}; next: everclip train {words} --dry-run")


def _absolute(photos: str) -> str:
    """Return a value for ``data =`` that works from any folder."""
    from everclip.data.paths import spec_of
    from everclip.system import trust

    name, colon, argument = spec_of(photos).partition(":")
    if trust.is_file(name):
        name = os.path.abspath(os.path.expanduser(name))
    path = os.path.abspath(os.path.expanduser(argument))
    return f"{name}:{path}" if colon and os.path.exists(path) else f"{name}{colon}{argument}"


def _free(out: str) -> Path:
    """Return the file to write. Raises UserError if it does not end in .toml or exists, or its folder does not."""
    path = Path(out).expanduser()
    if path.suffix != ".toml":
        raise UserError(f"-o {out} is not a .toml file: use -o {path.name or 'photos'}.toml")
    if os.path.lexists(path):
        raise UserError(f"{path} exists and is not replaced: train with it, or use -o ANOTHER.toml")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist: make it, or use -o ANOTHER.toml")
    return path
