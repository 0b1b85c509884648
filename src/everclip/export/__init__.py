"""A learned model for other programs. One file a format, found by its file name; each has

write(model, folder, pictures) -> Written      puts its files into the empty folder and checks them against torch
LINE                                           what the format is, in a few words
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.errors import UserError, suggest

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from everclip.deployed import Deployed


@dataclass(frozen=True)
class Written:
    """What an export did.

    Args:
        checked: what was compared with torch and how far it was off, as numbers.
        notes: what a user has to know.
    """

    checked: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def formats() -> list[str]:
    """Their names as they are written on the command line."""
    return [name.replace("_", "-") for name in plugins.names("export")]


def export(model: Deployed, form: str, out: str, pictures: UInt8[Tensor, "b 3 s s"]) -> Written:
    """Write a model in a format.

    Args:
        out: a folder that is not there, or is empty.
        pictures: what the export is compared with torch on.

    Raises:
        UserError: an unknown format, a missing package, or ``out`` holds something.
        RunError: the export does not give what torch gives.
    """
    if form not in formats():
        raise UserError(f'--format is "{form}"{suggest(form, formats())}')
    module = plugins.load("export", form.replace("-", "_"))
    with new_folder(out) as folder:
        return module.write(model, folder, pictures)


def check_new(out: str) -> Path:
    """The path of a folder to write. Raises UserError where something is there, or nothing can be."""
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{out} exists: give a new or an empty folder")
    above = next((parent for parent in path.parents if parent.exists()), path)
    if not above.is_dir():
        raise UserError(f"{out} cannot be written, as {above} is a file: give another folder")
    return path


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` at the end: complete, or not there.

    Raises:
        UserError: ``out`` is a file, holds something, or cannot be written.
    """
    path = check_new(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another folder") from error
    try:
        unfinished.chmod(path.parent.stat().st_mode & 0o777)  # mkdtemp's folders are their owner's alone
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
