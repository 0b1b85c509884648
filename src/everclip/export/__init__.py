"""Export a learned model for other programs. There is one module per format, found by its name; each has

write(model, folder, pictures) -> Written      puts its files into the empty folder and checks them against torch
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.errors import UserError, check_choice
from everclip.system.atomic import new_folder
from everclip.training.disk import on_disk

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from everclip.export.shared.quantised import Samples
    from everclip.inference.model import Deployed


ONNX = "onnx"


@dataclass(frozen=True)
class Written:
    """The outcome of an export.

    Args:
        checked: what was compared with torch and how far it was off, as numbers.
        notes: what a user has to know.
    """

    checked: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class More:
    """What an ONNX export may have besides the graph.

    Args:
        separate: also a graph for each encoder and one for the classifier.
        int8: the images to make an 8-bit graph with; None: no such graph.
    """

    separate: bool = False
    int8: Samples | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what another package prints, logs and warns of; errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file for people and programs."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def formats() -> list[str]:
    """Return the formats' names as the command line takes them."""
    return [name.replace("_", "-") for name in plugins.names("export")]


def export(
    model: Deployed, form: str, out: str, pictures: UInt8[Tensor, "b 3 s s"], more: More | None = None
) -> Written:
    """Write a model in a format, with a model card.

    Args:
        out: a new or empty folder.
        pictures: inputs on which the export is compared with torch.
        more: what an ONNX export has besides the graph.

    Raises:
        UserError: an unknown format, a missing package, ``out`` holds something, or the format has no ``more``.
        Dropped: the 8-bit graph loses more accuracy than allowed (shared/quantised.py); nothing is written.
        RunError: the export does not give what torch gives, or the disk is full or fails.
    """
    check_choice("--format", form, formats())
    more = more or More()
    if form != ONNX and (more.separate or more.int8):
        option = "--encoders separate" if more.separate else "--int8"
        raise UserError(f"{option} is for --format onnx, not {form}: add --format onnx, or leave it out")
    module = plugins.load("export", form.replace("-", "_"))
    from everclip.export.shared import card, quantised, separate

    if more.separate:
        separate.check(model)
    with on_disk(out), new_folder(out) as folder:
        written = module.write(model, folder, pictures)
        checked = dict(written.checked)
        if more.separate:
            checked["separate"] = separate.write(model, folder, pictures)
        if more.int8 is not None:
            with quiet():
                checked["int8"] = quantised.write(model, folder, more.int8)
        written = replace(written, checked=checked)
        card.write(model, form, folder, written)
        return written
