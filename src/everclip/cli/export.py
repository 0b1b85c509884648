"""everclip export: write a learned model in a format of other programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from everclip.cli._options import Classes, Json, Model, Out
from everclip.cli._output import print_json
from everclip.errors import UserError, check_choice
from everclip.system.text import printable

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from everclip.data.images import ImageSet
    from everclip.inference.model import Deployed

PICTURES = 64
"""Number of generated pictures to check an export on, without --check."""
MOST = 256
"""Largest number of images of ``--check`` that are compared with torch."""


MAX_DROP = 1.0  # percentage points


@Parameter(name="*")
@dataclass(frozen=True)
class Graphs:
    """Options of the format onnx.

    Args:
        encoders: one: a single graph. separate: also image.onnx, text.onnx and classifier.onnx (format onnx).
        int8: Also write model.int8.onnx, and print the accuracy that it loses (format onnx).
        calibrate: Images in CLASS folders to take the ranges of --int8 from (default: a version's exemplars).
        max_drop: Percentage points that --int8 may lose (default: 1); a larger loss means exit code 3 and no folder.
    """

    encoders: str = "one"
    int8: bool = False
    calibrate: str | None = None
    max_drop: float | None = None


def export(
    model: Model,
    *,
    format: str = "open-clip",
    out: Out,
    classes: Classes = None,
    check: str | None = None,
    graphs: Graphs | None = None,
    json: Json = False,
) -> int:
    """Export a model for open_clip, transformers or onnxruntime, and check it against torch.

    Args:
        format: open-clip: a folder for open_clip and everclip. hf: a CLIPModel for transformers. onnx: a graph that
            includes the classes, for onnxruntime alone.
        check: Images in CLASS folders to check the export on, and to measure int8 on (default: generated pictures, and
            a version's check images).
    """
    from everclip.export import More, formats
    from everclip.export import export as write

    chosen = graphs or Graphs()
    check_choice("--format", format, formats())
    check_choice("--encoders", chosen.encoders, ("one", "separate"))
    if chosen.calibrate is not None and not chosen.int8:
        raise UserError("--calibrate is for --int8: add --int8, or use everclip predict --calibrate")
    if chosen.max_drop is not None and not chosen.int8:
        raise UserError("--max-drop is for --int8: add --int8, or leave it out")
    opened, kept = _opened(model, classes, format, chosen.int8)
    if not opened.clip.image_size:
        raise UserError(f"{model} takes features, which no format has: open it with everclip.Learner")
    pictures = drawn(opened.clip.image_size) if check is None else _images(opened, check)
    from everclip.export.shared.quantised import Dropped, samples
    from everclip.runs.words import several

    most = MAX_DROP if chosen.max_drop is None else chosen.max_drop
    int8 = samples(opened, kept, (chosen.calibrate, check), most) if chosen.int8 else None
    captioned = opened.plan is not None and opened.plan.data.captioned
    count = 0 if captioned else len(opened.labels)
    result = {"model": model, "format": format, "out": None, "classes": count}
    try:
        written = write(opened, format, out, pictures, More(chosen.encoders == "separate", int8))
    except Dropped as error:
        if json:
            print_json(result | {"checked": {"int8": error.lost}, "notes": []})
        print(f"gate not met: {error}; nothing was written", file=sys.stderr)
        return 3
    if json:
        print_json(result | {"out": out, "checked": written.checked, "notes": list(written.notes)})
        return 0
    learned = "learned from captions" if captioned else several(count, "class")
    print(f"{out}: {format}, {learned}{_told(written.checked)}")
    for note in written.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    return 0


def _opened(
    model: str, classes: str | None, format: str, images: bool
) -> tuple[Deployed, tuple[ImageSet, ImageSet] | None]:
    """Return the model, and if ``images`` a version's exemplars and check images."""
    from everclip.inference.learned import is_version
    from everclip.inference.model import open_model
    from everclip.inference.predict import read_classes

    names = None if classes is None else read_classes(classes)
    folder = Path(model).expanduser()
    if not images or not is_version(folder):
        return open_model(model, names, pairs=format == "open-clip"), None
    from everclip.updating.state import read

    state = read(folder)
    assert state.model is not None  # a version that was read
    # of a run, which an update may leave as it is, they are not in the order learned
    labels = state.model.labels
    opened = state.model if names is None else state.model.among(names)
    return opened, (state.exemplars.relabel(labels), state.checks.relabel(labels))


def drawn(size: int) -> UInt8[Tensor, "b 3 s s"]:
    """Generate smooth pictures of random colours, the same every time."""
    import torch

    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(PICTURES, 3, 4, 4, generator=random) * 255
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (fine + 16 * torch.randn(fine.shape, generator=random)).clamp(0, 255).to(torch.uint8)


def _images(model: Deployed, data: str) -> UInt8[Tensor, "b 3 s s"]:
    """Read images spread evenly over a data set. Raises UserError if it has none, RunError if none can be read."""
    from everclip.errors import RunError
    from everclip.inference import assess

    images = assess.tested(assess.load(data, model)).spread(MOST)
    found, good = assess.decoded(images, model.clip).load(images.rows)
    if not good.any():
        raise RunError(f"not one of {len(images)} images of {data} can be read")
    return found


def _told(checked: dict[str, Any]) -> str:
    if "same_class" in checked:
        words = (
            f"; onnxruntime against torch on {checked['pictures']} pictures: the same class on"
            f" {checked['same_class']},"
            f" probabilities within {checked['largest_difference_of_probabilities']:.1g}"
        )
        if "separate" in checked:
            words += f"; separate graphs: within {checked['separate']['largest_difference']:.1g}"
        if "int8" in checked:
            from everclip.export.shared.quantised import told

            words += f"; {told(checked['int8'])}"
        return words
    if "transformers" in checked:
        return f"; transformers against torch: features within {checked['transformers']:.1g}"
    again = checked["everclip"]
    beside = f"; read again: {f'probabilities within {again:.1g}' if again else 'the same probabilities'}"
    if "open_clip" in checked:
        beside += f"; open_clip: features within {checked['open_clip']:.1g}"
    return beside
