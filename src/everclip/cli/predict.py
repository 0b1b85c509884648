"""everclip predict: classify pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from everclip.cli._options import Classes, Model
from everclip.errors import RunError, UserError, check_range
from everclip.system.text import json_text, printable

if TYPE_CHECKING:
    from everclip.inference.model import Deployed

_GIVE = "give pictures, folders of them, or - for paths on standard input"
FILE_WIDTH = 40
"""Width of a path on a terminal, in characters."""
NONE = "none"
"""What to print instead of a class if none is probable enough."""
UNKNOWN = "unknown"
"""What to print instead of a class if the picture is of none that was learned."""


def predict(
    model: Model,
    *files: Annotated[str, Parameter(allow_leading_hyphen=True)],
    top: int = 5,
    reject_below: float = 0.0,
    unknown_at: str | None = None,
    classes: Classes = None,
    calibrate: str | None = None,
    json: bool = False,
) -> None:
    """Classify pictures: one line per picture, with probabilities.

    Args:
        files: Pictures, folders of them, or - for a list of paths on standard input.
        top: Number of classes per image, the most probable first.
        reject_below: Answer "none" if the most probable class is less probable than this, 0..1.
        unknown_at: Answer "unknown" if no class fits: the fraction of pictures of known classes, 5% or 0.05, that may
            be called unknown by mistake.
        calibrate: Images in CLASS folders that were not learned, to fit and keep the temperature that makes
            probabilities reliable, and the threshold of --unknown-at.
        json: Print one JSON object per line.
    """
    from everclip.inference.model import open_model
    from everclip.inference.predict import read_classes
    from everclip.inference.unknown import read_rate

    check_range("--top", top, 1, 1_000_000)
    check_range("--reject-below", reject_below, 0, 1, "a probability")
    rate = None if unknown_at is None else read_rate(unknown_at, f'--unknown-at is "{unknown_at}"')
    if not files and calibrate is None:
        raise UserError(f"everclip predict needs pictures: {_GIVE}")
    paths = _paths(files)
    opened = open_model(model, None if classes is None else read_classes(classes))
    if calibrate is not None:
        opened = _calibrate(opened, calibrate)
    if files:
        _say(opened, paths, top, reject_below, rate, json)


def _say(
    model: Deployed, paths: Iterator[str], top: int, reject_below: float, rate: float | None, json: bool
) -> None:
    """Print one line per picture. Raises RunError if none could be read, UserError for a rate too low.

    Args:
        rate: of false alarms of "unknown".
    """
    from everclip.inference.predict import BATCH, answers, as_dict, files

    if reject_below and model.calibration is None:
        print(f"note: probabilities of {model.spec} are not calibrated: see --calibrate", file=sys.stderr)
    aligned = max(map(len, [*model.names, UNKNOWN])) if sys.stdout.isatty() else None
    read = total = 0
    for answer in answers(model, files(paths), rate):
        total += 1
        read += answer.probabilities is not None
        shown = as_dict(model, answer, top, reject_below, rate is not None)
        line = json_text(shown, None) if json else as_line(shown, aligned)
        print(line, flush=total % BATCH == 0)
    if not read:
        raise RunError(f"not one of {total} pictures could be read: the lines above say why")


def as_line(shown: dict[str, Any], aligned: int | None = None) -> str:
    """Return the same with tabs: file, class ("none", "unknown"), its probability, then other classes and theirs.

    Args:
        aligned: for a terminal, the width of a class, in columns aligned with spaces.
    """
    name = shown["class"] or (UNKNOWN if shown.get("unknown") else NONE)
    cells = [(shown["file"], FILE_WIDTH), (name, aligned or 0)]
    if shown["error"] is not None:
        cells += [("", 5), (f"cannot be read: {shown['error']}", 0)]
    else:
        cells.append((f"{shown['probability']:.3f}", 5))
    for other in shown["top"][1:]:
        cells += [(other["class"], aligned or 0), (f"{other['probability']:.3f}", 5)]
    cells = [(printable(text), width) for text, width in cells]
    if aligned is None:
        return "\t".join(text for text, _ in cells)
    return "  ".join(f"{text:<{width}}" for text, width in cells).rstrip()


def _paths(files: tuple[str, ...]) -> Iterator[str]:
    """Return the pictures' paths. Raises UserError for one that does not exist, before any model is loaded."""
    from everclip.inference.predict import expanded

    lost = next((path for path in files if path != "-" and not Path(path).exists()), None)
    if lost is not None and lost.startswith("--"):
        raise UserError(f'everclip predict has no option "{lost}": see everclip predict --help')
    if lost is not None:
        raise UserError(f"{lost} does not exist: {_GIVE}")
    # Decoded as arguments are: not all names are UTF-8.
    listed = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())
    found = expanded(chain.from_iterable(listed if path == "-" else [path] for path in files))
    try:
        return chain([next(found)], found) if files else found
    except StopIteration:
        raise UserError("no paths on standard input: give one per line") from None


def _calibrate(model: Deployed, data: str) -> Deployed:
    """Fit the model's temperature on ``data`` and keep it in the model's folder, with what sets thresholds."""
    from everclip.inference import assess
    from everclip.inference.unknown import least_rate

    fitted, held = assess.fit_temperature(model, data)
    kept = assess.keep_calibration(model, fitted, held)
    why = "the model has no folder of its own" if model.plan is None else "it is of the given classes alone"
    where = f"for this call: {why}" if kept is None else f"kept in {kept}"
    print(
        f"temperature {fitted.temperature:.3g}, fitted on {fitted.images} images of {fitted.data}: calibration error"
        f" {fitted.ece_before:.1%} before, {fitted.ece:.1%} after (cross-fitted in two halves); --unknown-at from"
        f" {least_rate(held.finest)}%, by the score {held.score}; {where}",
        file=sys.stderr,
    )
    return model.noting(calibration=fitted, unknown=held)
