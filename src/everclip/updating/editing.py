"""Rename, merge and remove classes of a version without training: its classifier is solved anew from its sums.

A merged class has the images of all its parts: sums add up, exemplars get its label. A removed one is forgotten
(forgetting.py), but stays in the version before, so that ``everclip rollback`` brings it back. The encoder is
unchanged, so embeddings stay valid.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from everclip.data.formats.folders import check_names
from everclip.data.images import Dataset, ImageSet
from everclip.data.pixels import Pixels
from everclip.errors import UserError, suggest
from everclip.inference.assess import decoded
from everclip.runs.words import listed
from everclip.updating.classifiers import scores
from everclip.updating.core import Outcome
from everclip.updating.forgetting import placed, without
from everclip.updating.images import holdout
from everclip.updating.reliance import refitted, solved_anew, unlearned
from everclip.updating.state import State


@dataclass(frozen=True)
class Edit:
    """The classes after an edit.

    Args:
        words: what is done, for the record.
        names: class names, index = label.
        place: the new label of each old one; -1 for a removed class.
    """

    words: str
    names: tuple[str, ...]
    place: tuple[int, ...]


def rename(names: Sequence[str], new: Mapping[str, str]) -> Edit:
    """Give classes other names.

    Args:
        new: old name -> new name.

    Raises:
        UserError: an unknown class, or two classes would have one name.
    """
    _check_known(new, names)
    after = tuple(new.get(name, name) for name in names)
    twice = [name for name in new.values() if after.count(name) > 1]
    if twice:
        raise UserError(f'two classes would be called "{twice[0]}": merge them, or give another name')
    check_names(after, "what rename gives")
    pairs = [f"{old} to {now}" for old, now in new.items()]
    return Edit(f"renamed {listed(pairs)}", after, tuple(range(len(names))))


def merge(names: Sequence[str], parts: Sequence[str], into: str) -> Edit:
    """Make several classes one, in the place of the first.

    Raises:
        UserError: an unknown class, fewer than two, or ``into`` is the name of another class.
    """
    _check_known(parts, names)
    if len(set(parts)) < 2:
        raise UserError("merge makes one class of several: name at least two")
    if into in names and into not in parts:
        raise UserError(f'"{into}" is a class of its own: name it among those to merge, or take another name')
    labels = sorted(names.index(name) for name in set(parts))
    rest = [label for label in range(len(names)) if label not in labels[1:]]
    after = tuple(into if label == labels[0] else names[label] for label in rest)
    check_names(after, "what merge gives")
    place = tuple(rest.index(labels[0] if label in labels else label) for label in range(len(names)))
    return Edit(f"merged {listed([names[label] for label in labels])} into {into}", after, place)


def remove(names: Sequence[str], gone: Sequence[str]) -> Edit:
    """Take classes out. Raises UserError for an unknown class, or where none would be left."""
    _check_known(gone, names)
    after = tuple(name for name in names if name not in gone)
    if not after or not gone:
        raise UserError("name at least one class to remove, and leave at least one")
    place = tuple(after.index(name) if name in after else -1 for name in names)
    return Edit(f"removed {listed(gone)}", after, place)


def edit(state: State, wanted: Edit, test: Dataset | None, max_drop: float) -> Outcome:
    """Return the next version of ``state``, with other classes.

    Args:
        test: held-out images under the new or the old names; None: test on the version's check images.
        max_drop: percentage points that accuracy on the classes that stay may lose.

    Raises:
        UserError: its classifier cannot be solved anew, or ``test`` has unknown classes.
    """
    begin = time.perf_counter()
    model = state.model
    assert model is not None, "a version has classes"
    after = _edited(state, wanted)
    edited = after.model
    assert edited is not None
    if test is None:
        old = state.checks.select(np.array(wanted.place)[state.checks.labels] >= 0)
        images, pixels = placed(old, wanted.place), decoded(old, edited.encoder)
        (was, _), (now, _) = unlearned(state, old, pixels), unlearned(after, images, pixels)
    else:
        images, pixels = _unseen(state, after, wanted, test)
        was, now = scores(model, images, pixels), scores(edited, images, pixels)
    after, told = refitted(after, model)
    result = _compared(was, now, wanted, images) if len(images) else None
    lost = None if result is None else 100 * (result["before"] - result["after"])
    what = (
        "held-out images" if test is not None else "check images, by classifiers that have not learned them"
    )
    words = f"accuracy on {what}" if result is not None else "no image to test on: not measured"
    passed = lost is None or lost <= max_drop + 1e-9
    gate = {"passed": passed, "max_drop": max_drop, "drop": lost and round(lost, 4), "words": words}
    after = replace(after, record=after.next_record(wanted.words, 0, ()))
    verdict = {
        "schema": 1,
        "from": state.spec,
        "version": after.version,
        "made": after.record["made"],
        "edit": wanted.words,
        "classes": {"before": list(state.known.names), "after": list(wanted.names)},
        "test": result,
        "gate": gate,
        **told,
        "index": {"words": "index valid: the encoder is as it was, so embeddings stay valid"},
        "seconds": round(time.perf_counter() - begin, 1),
    }
    return Outcome(after, verdict, passed)


def _unseen(state: State, after: State, wanted: Edit, test: Dataset) -> tuple[ImageSet, Pixels]:
    """Return unlearned held-out images of the classes that stay; those under an old name count for the class that it
    became. Raises UserError if there is none."""
    became = {
        name: None if label < 0 else wanted.names[label]
        for name, label in zip(state.known.names, wanted.place, strict=True)
        if name not in wanted.names  # a name that is a class now, too, means that class
    }
    stays = [label for label, name in enumerate(test.class_names) if became.get(name, name) is not None]
    test = replace(test, train=test.train.of_classes(stays), test=test.test.of_classes(stays))
    same = {name: now for name, now in became.items() if now is not None}
    images, pixels = holdout(after.known, test, state.encoder, same=same)
    learned = [state.sums.ids.numpy(), state.exemplars.ids, state.checks.ids]
    images = images.select(~np.isin(images.ids, np.concatenate(learned)))
    if not len(images):
        raise UserError(f"--test {test.name} has no unlearned image of a class that stays: add some")
    return images, pixels


def _edited(state: State, wanted: Edit) -> State:
    """Return the state with other classes, and its classifier solved anew."""
    assert state.model is not None
    gone = [name for name, label in zip(state.known.names, wanted.place, strict=True) if label < 0]
    if gone:
        return without(state, gone, []).state
    place = torch.tensor(wanted.place, dtype=torch.int64)
    called = {name: wanted.names[label] for name, label in zip(state.known.names, wanted.place, strict=True)}
    history = [
        line | {"classes": [*dict.fromkeys(called.get(name, name) for name in line["classes"])]}
        for line in state.record.get("history", [])
    ]
    after = replace(
        state,
        record={**state.record, "history": history},
        known=state.known.placed(wanted.names, wanted.place),
        sums=state.sums.merged(place, len(wanted.names)),
        exemplars=placed(state.exemplars, wanted.place),
        checks=placed(state.checks, wanted.place),
    )
    return replace(after, model=solved_anew(state, after))


def _compared(
    before: Float32[np.ndarray, "n c"], after: Float32[np.ndarray, "n d"], wanted: Edit, images: ImageSet
) -> dict[str, Any]:
    """Return accuracies by scores before and after; an old answer counts as the class that it became."""
    was = np.array(wanted.place)[before.argmax(1)] == images.labels
    now = after.argmax(1) == images.labels
    rows = [
        {
            "class": wanted.names[label],
            "n": int((images.labels == label).sum()),
            "before": float(was[images.labels == label].mean()),
            "after": float(now[images.labels == label].mean()),
        }
        for label in np.unique(images.labels).tolist()
    ]
    return {"images": len(images), "before": float(was.mean()), "after": float(now.mean()), "per_class": rows}


def _check_known(given: Iterable[str], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            raise UserError(f'no class is called "{name}"{suggest(name, names)}')
