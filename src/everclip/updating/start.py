"""Open the starting point of an update: a version, a run, a model folder, or any model with or without classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from everclip import data as sources
from everclip.config.models import NEWEST
from everclip.data.formats.folders import ADDITION, check_names
from everclip.data.images import Dataset, FileStore, ImageSet, joined
from everclip.data.paths import spec_of
from everclip.data.scenario import Task, seen
from everclip.errors import UserError, check_range, suggest
from everclip.inference.learned import is_version
from everclip.inference.merge import whole
from everclip.inference.model import (
    Deployed,
    check_own,
    is_learned,
    of_run,
    open_model,
    templates_of,
    zero_shot,
)
from everclip.methods.shared.sums import Sums
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.runs.card import CardTask
from everclip.system import trust
from everclip.system.atomic import recover
from everclip.training.restore import device
from everclip.updating import state as states
from everclip.updating.classifiers import Known, labels_of, width
from everclip.updating.state import FROZEN_TRAINED, State

MOST_OLDER = 100
"""Largest number of old images per class whose features enter the first sums."""


def nothing() -> ImageSet:
    """Return an empty set of images."""
    none = np.zeros(0, dtype=np.int64)
    return ImageSet(FileStore(Path(), ()), none, none, none, none)


def unsaid(line: str) -> None:
    """Say nothing."""


def begin(
    spec: str,
    classes: Sequence[str] | None = None,
    memory: str | None = None,
    image_size: int | None = None,
    same: Mapping[str, str] | None = None,
    say: Callable[[str], object] = unsaid,
) -> State:
    """Return the state that an update of ``spec`` starts from.

    Args:
        classes: of a model that has none of its own; None: it knows no class yet.
        memory: a data set with images of old classes.
        same: name in ``memory`` -> old class name, where they are one class.
        say: called with a line on how ``memory`` was read.

    Raises:
        UserError: no such model, a version that is damaged, a run whose images are gone, or ``memory`` has other
            classes.
    """
    folder = Path(spec).expanduser()
    recover(folder)  # from an interrupted rollback
    if is_learned(spec):
        check_own(spec, {"--classes": classes, "--image-size": image_size})
    if is_version(folder):
        found = states.read(folder)
    elif is_learned(spec):
        found = _of_learned(spec, folder, memory is None)
    else:
        found = _of_model(spec, classes, image_size)
    found = replace(found, place=folder.absolute())
    return found if memory is None else _with_memory(found, memory, same, say)


def _of_model(spec: str, classes: Sequence[str] | None, image_size: int | None) -> State:
    """Return the state of a model that has learned nothing."""
    path = Path(spec).expanduser()
    if path.is_file():
        raise UserError(f"{spec} is a file: give a run directory, a model folder or a model's name")
    check_range("--image-size", image_size, 16, 4096)
    names = tuple(classes or ())
    check_names(names, "the classes given")
    clip = zoo.load(spec, image_size, device("auto"))
    templates = tuple(templates_of(spec))
    if names and not templates:
        raise UserError(f"{spec} knows no class by name: leave classes out, and give their features")
    model = zero_shot(spec, clip, names, templates) if names else None
    tasks = (CardTask(name="asked for", labels=list(range(len(names)))),) if names else ()
    return _fresh(spec, model, Known(names, tasks, templates, _base(clip, spec, NEWEST)), clip, None)


def _of_learned(spec: str, folder: Path, images: bool) -> State:
    """Return the state of a run, with its training images if they are needed, or of a model folder."""
    older = None
    if (folder / "config.toml").is_file() and images:
        try:
            model = of_run(folder)
            model.check_classes()
        except trust.Refused:  # it has a remedy of its own
            raise
        except UserError as error:
            raise UserError(
                f"{error}; or give images of its classes with everclip update --memory DATA"
            ) from error
        assert model.plan is not None
        older = _older(model, model.plan.tasks)
    else:
        model = open_model(spec)
    assert model.plan is not None
    config, names = model.plan.config, model.names
    place = {label: column for column, label in enumerate(model.labels)}
    found = model.plan.tasks
    tasks = tuple(CardTask(name=one.name, labels=[place[label] for label in one.classes]) for one in found)
    clip = whole(model.encoder)
    base = _base(clip, config.model, config.defaults)
    templates = model.templates if clip.image_size else ()  # with features, only old classes have texts
    found = _fresh(spec, model, Known(names, tasks, templates, base), clip, older)
    trained = model.plan.method.capabilities.trains
    return replace(found, record={FROZEN_TRAINED: trained})


def _base(clip: Clip, model: str, defaults: int) -> dict[str, Any]:
    size = clip.image_size or None
    return {"model": model, "image_size": size, "center": clip.centered, "defaults": defaults}


def _fresh(spec: str, model: Deployed | None, known: Known, clip: Clip, older: ImageSet | None) -> State:
    sums = Sums.empty(len(known.names), width(known, clip))
    return State(spec, model, known, clip, None, sums, nothing(), nothing(), ("before",), older)


def _older(model: Deployed, tasks: Sequence[Task]) -> ImageSet:
    """Return the training images of a run, some of each class, labelled by the model's columns."""
    table = [-1] * len(model.classes)
    for column, label in enumerate(seen(tasks)):
        table[label] = column
    return _few(joined(task.train for task in tasks).relabel(table))


def _few(images: ImageSet) -> ImageSet:
    """Return at most ``MOST_OLDER`` images per class, spread over it, in one domain."""
    kept = []
    for label in np.unique(images.labels).tolist():
        rows = np.flatnonzero(images.labels == label)
        kept.append(rows[np.unique(np.linspace(0, len(rows) - 1, MOST_OLDER).astype(np.int64))])
    chosen = images.select(np.sort(np.concatenate(kept)))
    return replace(chosen, domains=np.zeros_like(chosen.domains))


def _with_memory(
    state: State, spec: str, same: Mapping[str, str] | None, say: Callable[[str], object]
) -> State:
    """Return the state with old images to learn from. Raises UserError for a class that the model does not know."""
    found = load(spec, state)
    images = everything(found)
    table = labels_of(found.class_names, state.known.names, same)
    unknown = [found.class_names[label] for label in np.unique(images.labels) if table[label] < 0]
    if unknown:
        near = suggest(unknown[0], state.known.names)
        raise UserError(f'--memory {spec} has images of "{unknown[0]}", which is not an old class{near}')
    older = _few(images.relabel(table))
    used = "all are used" if len(older) == len(images) else f"at most {MOST_OLDER} per class are used"
    say(f"--memory {found.name}: {_counted(images)}, {used}")
    return replace(state, older=older, called=found.class_names)


def load(spec: str, state: State) -> Dataset:
    """Return a data set of any number of classes, with prompts that suit the state's model."""
    return sources.load(spec, ADDITION, model=str(state.known.base["model"]))


def load_both(
    add: str, test: str | None, state: State, say: Callable[[str], object]
) -> tuple[Dataset, Dataset | None]:
    """Return the data to learn and those to test on; ``say`` is called with a line on how each was read.

    If both are the same folder without a test part, a held-out part of it is tested and not learned.
    """
    found = load(add, state)
    held = None if test is None else found if spec_of(test) == spec_of(add) else load(test, state)
    part = "all of it" if found.held_out else "its training part"
    tested = "" if held is None else "all of it" if held.held_out else "its test part"
    if found is held and found.held_out:
        found = held = replace(found, held_out=False)
        part, tested = "except a fifth of each class", "that fifth"
    say(f"--add {found.name}: {_counted(everything(found))} to learn, {part}")
    if held is not None:
        say(f"--test {held.name}: {_counted(held.whole())} for testing, {tested}")
    return found, held


def _counted(images: ImageSet) -> str:
    classes = len(np.unique(images.labels))
    return f"{len(images)} images of {classes} class{'es' * (classes != 1)}"


def everything(found: Dataset) -> ImageSet:
    """Return the images to learn from: all of a folder that was split here, else the training part."""
    return found.train + found.test if found.held_out else found.train
