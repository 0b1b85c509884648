"""Remove classes or single images from a version, and show that they are gone.

What goes: the images' bytes; what they added to the sums; their ids; a class's name, its place in the class list and
its row of the sums. What stays: trained weights, from which no image can be taken out. Features are computed again and
subtracted from the sums, which is exact up to rounding. A class can be removed from G only with all of its images; if
some are missing, G is re-estimated from what is left (``Sums.without_classes``). Previous versions still have it all,
so the new folder keeps none of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everclip.data.gathered import gather
from everclip.data.images import MOST_BYTES, FileStore, ImageSet, content_id
from everclip.errors import UserError, suggest
from everclip.inference.assess import decoded
from everclip.inference.predict import expanded
from everclip.methods.shared.sums import Sums
from everclip.system.reading import read_bytes, readable
from everclip.updating.candidates import NAMES
from everclip.updating.classifiers import features
from everclip.updating.reliance import refitted, solved_anew
from everclip.updating.start import nothing
from everclip.updating.state import State, now

log = logging.getLogger("everclip")


@dataclass(frozen=True, eq=False)
class Forgotten:
    """The remaining version, and what was removed: ``report``, which goes into update.json."""

    state: State
    report: dict[str, Any]


def forget(state: State, classes: Sequence[str], files: Sequence[str]) -> Forgotten:
    """Return a version without some classes and single images, its temperature and thresholds fitted again on the
    remaining check images.

    Args, Raises: as ``without``.
    """
    made = without(state, classes, files)
    assert state.model is not None
    after, told = refitted(made.state, state.model)
    return Forgotten(after, {**made.report, **told})


def without(state: State, classes: Sequence[str], files: Sequence[str]) -> Forgotten:
    """Return a version without some classes and single images; it has neither a temperature nor thresholds.

    Args:
        classes: names.
        files: learned images, recognised by content, whatever their names; or folders, in which images that were not
            learned are left alone. Giving the images of a removed class makes the removal of its part of G exact.

    Raises:
        UserError: an unknown class; no class, or no image of a class, would be left; a file that was never learned; or
            a version whose classifier does not follow from its sums.
    """
    model, classes = state.model, tuple(dict.fromkeys(classes))
    if model is None or not (classes or files):
        raise UserError("nothing to forget: give --class NAME or --images FILES")
    unknown = next((name for name in classes if name not in state.known.names), None)
    if unknown is not None:
        raise UserError(f'{state.spec} knows no class "{unknown}"{suggest(unknown, state.known.names)}')
    if len(classes) == len(state.known.names):
        raise UserError("no class would be left: delete the folder instead")
    given, ids = _found(state, files)
    gone = [state.known.names.index(name) for name in classes]
    sums = _without_images(state, given, gone)
    exact = all(int(sums.counts[label]) == 0 for label in gone)
    kept, checks = (part.select(~np.isin(part.ids, ids)) for part in (state.exemplars, state.checks))
    sums = _without_classes(state, sums, gone, () if exact else (kept, checks))
    names = tuple(name for name in state.known.names if name not in classes)
    label_of = {name: label for label, name in enumerate(names)}
    place = [label_of.get(name, -1) for name in state.known.names]
    kept, checks = _to_learn_from(sums, *(placed(part, place) for part in (kept, checks)))
    after = replace(state, known=state.known.placed(names, place), sums=sums, exemplars=kept, checks=checks)
    after = replace(after, model=solved_anew(state, after))
    report = {
        "when": now(),
        "classes": len(classes),
        "images": len(np.unique(ids)),
        "exact": exact,
        "second_moments_made_anew": not exact,
        "weights_trained_on_them": state.tuned is not None or state.frozen_trained,
    }
    record = dict(state.record) | {"forgotten": [*state.record.get("forgotten", []), report]}
    if classes:  # names are forgotten too
        record["history"] = [_without_names(line, names) for line in record.get("history", [])]
    return Forgotten(replace(after, record=record), report)


def _without_names(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a line of the history without the names of classes that are gone. Of an edit, whose words may name what
    became a forgotten class, only the kind is kept."""
    edited = "" if line["chosen"] in NAMES else f"{line['chosen'].partition(' ')[0]} classes"
    return dict(line) | {
        "chosen": edited or line["chosen"],
        "classes": [name for name in line["classes"] if name in names],
    }


def _found(state: State, files: Sequence[str]) -> tuple[ImageSet, np.ndarray]:
    """Return the images of ``files`` as a table with the labels they were learned with. Raises UserError."""
    paths = [*expanded(os.path.expanduser(file) for file in files)]
    if not paths:
        return nothing(), np.zeros(0, dtype=np.int64)
    ids = []
    for path in paths:
        with readable(path, "give the file that was learned"):
            ids.append(content_id(read_bytes(Path(path), MOST_BYTES)))
    label_of = dict(zip(state.sums.ids.tolist(), state.sums.labels.tolist(), strict=True))
    for part in (state.exemplars, state.checks):
        label_of |= dict(zip(part.ids.tolist(), part.labels.tolist(), strict=True))
    unknown = [path for path, sample in zip(paths, ids, strict=True) if sample not in label_of]
    if unknown:  # in a folder, a held-out part may lie beside what was learned
        named = {os.path.expanduser(file) for file in files}
        if len(unknown) == len(paths) or not named.isdisjoint(unknown):
            raise UserError(f"{unknown[0]} is not an image that {state.spec} learned: give the original file")
        log.warning("%d of %d images were not learned, such as %s", len(unknown), len(paths), unknown[0])
        left = set(unknown)
        paths = [path for path in paths if path not in left]
        ids = [sample for sample in ids if sample in label_of]
    rows = np.arange(len(paths), dtype=np.int64)
    labels = np.array([label_of[sample] for sample in ids], dtype=np.int64)
    known = np.array(ids, dtype=np.int64)
    return ImageSet(FileStore(Path(), paths), rows, labels, np.zeros_like(rows), known), known


def _columns(state: State, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return features of the frozen model, and labels."""
    found = features(state.frozen, images, decoded(images, state.frozen), state.layers)
    return found, torch.from_numpy(images.labels)


def _without_images(state: State, given: ImageSet, gone: Sequence[int]) -> Sums:
    """Return the sums without the given images, and without the folder's own images of the classes ``gone``. Raises
    UserError where the classifier is solved from images and a class that stays would have none."""
    own = [part.of_classes(gone) for part in (state.exemplars, state.checks)]
    sums = state.sums
    parts, _ = gather([given, *own])
    for part in parts:  # what is out already is not subtracted again
        sums = sums.minus(*_columns(state, part), torch.from_numpy(part.ids))
    assert state.model is not None
    for label in np.unique(given.labels).tolist():
        if label not in gone and not sums.counts[label] and not state.model.reads_text:
            name = state.known.names[label]
            raise UserError(f'no image of "{name}" would be left to know it by: use --class "{name}"')
    return sums


def _without_classes(state: State, sums: Sums, gone: Sequence[int], parts: Sequence[ImageSet]) -> Sums:
    """Return the sums without the classes ``gone``.

    Args:
        parts: the images that are kept, if the sums still have some of these classes.
    """
    if not parts:
        return sums.dropped(gone)
    (one, other), _ = gather(parts)
    others = (one + other).select(~np.isin([*one.labels, *other.labels], gone))
    rows, _ = _columns(state, others)
    return sums.without_classes(gone, rows, torch.from_numpy(others.labels), torch.from_numpy(others.ids))


def _to_learn_from(sums: Sums, kept: ImageSet, checks: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return exemplars and check images. Where the sums hold only check images of a class, these become exemplars:
    check images are scored by a classifier that has not learned them, and it would not know the class."""
    others = sums.labels[~torch.isin(sums.ids, torch.from_numpy(checks.ids))]
    alone = np.setdiff1d(checks.labels, others.numpy()).tolist()
    if not alone:
        return kept, checks
    (kept, checks), _ = gather([kept, checks])
    return kept + checks.of_classes(alone), checks.select(~np.isin(checks.labels, alone))


def placed(images: ImageSet, place: Sequence[int]) -> ImageSet:
    """Return the images of classes that stay, with their new labels; ``place`` as in ``Known.placed``."""
    moved = images.relabel(place)
    return moved.select(moved.labels >= 0)
