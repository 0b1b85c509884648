"""everclip export: write a learned model in a format of other programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from everclip.cli._options import Classes, Json, Model, Out
from everclip.cli._output import print_json

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from everclip.inference.model import Deployed

PICTURES = 64
"""Number of generated pictures to check an export on, without --check."""
MOST = 256
"""Largest number of images of ``--check``."""


def export(
    model: Model,
    *,
    format: str = "open-clip",
    out: Out,
    classes: Classes = None,
    check: str | None = None,
    json: Json = False,
) -> None:
    """Export a learned model as an open_clip folder or an ONNX graph, and check it against torch.

    Args:
        format: open-clip: a folder that open_clip loads, and everclip with its classes. onnx: a graph that includes
        the classes, for onnxruntime alone.
        check: Images in CLASS folders to check the export on (default: generated pictures).
    """
    from everclip.errors import UserError, suggest
    from everclip.export import export as write
    from everclip.export import formats
    from everclip.inference.model import open_model
    from everclip.inference.predict import read_classes

    if format not in formats():
        raise UserError(f'--format is "{format}"{suggest(format, formats())}')
    opened = open_model(
        model, None if classes is None else read_classes(classes), pairs=format == "open-clip"
    )
    if not opened.clip.image_size:
        raise UserError(
            f"{model} takes features, for which there is no format: everclip.Learner opens it as it is"
        )
    pictures = drawn(opened.clip.image_size) if check is None else _images(opened, check)
    written = write(opened, format, out, pictures)
    result = {"model": model, "format": format, "out": out, "classes": len(opened.labels)}
    result |= {"checked": written.checked, "notes": list(written.notes)}
    if json:
        print_json(result)
        return
    print(f"{out}: {format}, {len(opened.labels)} classes{_told(written.checked)}")
    for note in written.notes:
        print(f"note: {note}", file=sys.stderr)


def drawn(size: int) -> UInt8[Tensor, "b 3 s s"]:
    """Generate smooth pictures of random colours, the same every time."""
    import torch

    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(PICTURES, 3, 4, 4, generator=random) * 255
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (fine + 16 * torch.randn(fine.shape, generator=random)).clamp(0, 255).to(torch.uint8)


def _images(model: Deployed, data: str) -> UInt8[Tensor, "b 3 s s"]:
    """Read images spread evenly over a data set. Raises RunError if none can be read."""
    import numpy as np

    from everclip.data.pixels import Pixels
    from everclip.errors import RunError
    from everclip.inference import assess

    images = assess.load(data, model).whole()
    rows = images.rows[np.unique(np.linspace(0, len(images) - 1, MOST).astype(np.int64))]
    found, good = Pixels(images.store, model.clip.eval_transform, model.clip.image_size, 0).load(rows)
    if not good.any():
        raise RunError(f"not one of {len(rows)} images of {data} can be read")
    return found


def _told(checked: dict[str, Any]) -> str:
    if "same_class" in checked:
        return (
            f"; onnxruntime against torch on {checked['pictures']} pictures: the same class on"
            f" {checked['same_class']},"
            f" probabilities within {checked['largest_difference_of_probabilities']:.1g}"
        )
    again = checked["everclip"]
    beside = f"; read again: {f'probabilities within {again:.1g}' if again else 'the same probabilities'}"
    if "open_clip" in checked:
        beside += f"; open_clip: features within {checked['open_clip']:.1g}"
    return beside
