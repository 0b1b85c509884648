"""Export a learned model for other programs. There is one module per format, found by its name; each has

write(model, folder, pictures) -> Written      puts its files into the empty folder and checks them against torch
LINE                                           what the format is, in a few words
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.errors import UserError, suggest
from everclip.system.atomic import new_folder
from everclip.training.disk import on_disk

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from everclip.inference.model import Deployed


@dataclass(frozen=True)
class Written:
    """The outcome of an export.

    Args:
        checked: what was compared with torch and how far it was off, as numbers.
        notes: what a user has to know.
    """

    checked: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what another package prints, logs and warns of; what goes wrong comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


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
        RunError: the export does not give what torch gives, or the disk is full or fails.
    """
    if form not in formats():
        raise UserError(f'--format is "{form}"{suggest(form, formats())}')
    module = plugins.load("export", form.replace("-", "_"))
    with on_disk(out), new_folder(out) as folder:
        return module.write(model, folder, pictures)
