"""Measure how much accuracy old classes lose on held-out images, and whether the gate allows it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from everclip.data.images import Dataset, ImageSet
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.inference.learned import of_run
from everclip.metrics.stats import mcnemar
from everclip.runs.words import listed
from everclip.updating.classifiers import scores
from everclip.updating.images import Pictures, Watch, holdout, unwatched
from everclip.updating.state import State

log = logging.getLogger("everclip")

LIKELY = 0.05
"""Least p of a test from which a loss is said to be possibly chance."""


class Held(NamedTuple):
    """Held-out images. ``duplicates``: number of images left out because they were learned."""

    images: ImageSet
    pixels: Pixels
    duplicates: int


def unseen(
    state: State, pictures: Pictures, test: Dataset, same: Mapping[str, str], watch: Watch = unwatched
) -> Held:
    """Return held-out images without those that were learned; ``same`` as for ``collect``. Raises UserError where none
    is left."""
    images, pixels = holdout(pictures.known, test, state.encoder, watch, same)
    learned = (pictures.new, pictures.older, pictures.checks, pictures.exemplars)
    fresh = ~np.isin(images.ids, np.concatenate([state.sums.ids.numpy(), *(part.ids for part in learned)]))
    before = of_run(state.place or Path(state.spec).expanduser())
    if before is not None:  # only some of a run's training images are learned again
        fresh &= ~before.among(images)
    if not fresh.any():
        raise UserError(f"all test images ({test.name}) were learned, or will be: keep some apart")
    left_out = int((~fresh).sum())
    if left_out:
        log.warning("%d test images (%s) are also learned, and are not tested", left_out, test.name)
    return Held(images.select(fresh), pixels, left_out)


def check_measured(state: State, held: Held | None, max_drop: float) -> None:
    """Raise UserError where no old class has a held-out image, and warn where some have none: their loss is not
    measured."""
    tested = set() if held is None else {*held.images.labels.tolist()}
    old = len(state.known.names)
    lacking = [name for label, name in enumerate(state.known.names) if label not in tested]
    if old and len(lacking) < old and lacking:
        some = listed(lacking)
        log.warning(
            "no test image shows %d of %d old classes, and what these lose is not measured: %s",
            len(lacking),
            old,
            some,
        )
    if old and len(lacking) == old:
        points = "point" if max_drop == 1 else "points"
        raise UserError(
            f"old classes of {state.spec} may lose {max_drop:g} {points}, but no test image shows one of them:"
            f" give some, or use --unmeasured (in Python: no max_drop)"
        )


def compare(state: State, after: State, held: Held, watch: Watch = unwatched) -> dict[str, Any]:
    """Return accuracy on held-out images: before the update among the old classes, after it among all."""
    assert after.model is not None
    images, pixels, duplicates = held
    old = len(state.known.names)
    is_old = images.labels < old
    step = watch("testing", len(images) + (int(is_old.sum()) if state.model is not None else 0))
    found = scores(after.model, images, pixels, step)
    assert after.model.names == after.known.names  # so columns are labels
    now = found.argmax(1) == images.labels
    before: np.ndarray | None = None
    if state.model is not None and is_old.any():
        part = images.select(is_old)
        before = scores(state.model, part, pixels, step).argmax(1) == part.labels
    names, per_class = after.known.names, []
    for label in np.unique(images.labels).tolist():
        rows = images.labels == label
        was = None if before is None or label >= old else float(before[images.labels[is_old] == label].mean())
        counted = {"class": names[label], "n": int(rows.sum())}
        per_class.append(counted | {"before": was, "after": float(now[rows].mean())})
    return {
        "images": len(images),
        "duplicates": duplicates,
        "accuracy": float(now.mean()),
        "old_before": None if before is None else float(before.mean()),
        "old_after": float(now[is_old].mean()) if is_old.any() else None,
        "new_after": float(now[~is_old].mean()) if (~is_old).any() else None,
        "per_class": per_class,
        **({} if before is None else _changed(before, now[is_old])),
    }


def _changed(before: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    """Return how many images of old classes have become wrong and right, and the p of the exact McNemar test."""
    wrong, right = int((before & ~now).sum()), int((now & ~before).sum())
    return {"old_newly_wrong": wrong, "old_newly_right": right, "old_p": mcnemar(now, before).p}


def lost(drop: float) -> str:
    """Return points lost in words, rounded up to hundredths: so a loss above a limit never looks allowed."""
    return f"{math.ceil(100 * drop - 1e-6) / 100:g}"


def gate_of(result: dict[str, Any] | None, allowed: float, state: State) -> dict[str, Any]:
    """Decide whether the old classes keep enough accuracy, and say on what that was measured.

    Returns:
        the gate for the verdict; ``unmeasured`` lists the old classes without a held-out image.
    """
    drop, passed = None, True
    counts = {} if result is None else {row["class"]: row["n"] for row in result["per_class"]}
    old = state.known.names
    lacking = [name for name in old if name not in counts]
    if not state.known.names:
        words = "no class was known before"
    elif result is None or result["old_before"] is None:
        words = "no held-out images of old classes: not measured"
    else:
        before, after = 100 * result["old_before"], 100 * result["old_after"]
        passed, drop = before - after <= allowed + 1e-9, round(before - after, 4)
        images = sum(counts.get(name, 0) for name in old)
        of = f"{len(old) - len(lacking)} of {len(old)} classes"
        words = f"old classes {before:.1f} % -> {after:.1f} % on {images} held-out images of {of}"
        if drop > 0 and "old_newly_wrong" in result:
            words += f" ({result['old_newly_wrong']} newly wrong, {result['old_newly_right']} newly right"
            words += ", which may be chance)" if result["old_p"] >= LIKELY else ")"
    return {"passed": passed, "max_drop": allowed, "drop": drop, "words": words, "unmeasured": lacking}
