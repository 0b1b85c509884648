"""Measure a learned model on labelled images, for evaluation, calibration and merging."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from everclip import data as sources
from everclip.data import scenarios
from everclip.data.formats.folders import ADDITION
from everclip.data.images import Dataset, ImageSet
from everclip.data.loader import Loader
from everclip.data.paths import spec_of
from everclip.data.pixels import Pixels
from everclip.data.scenario import Task, seen
from everclip.errors import UserError
from everclip.inference.learned import repeated
from everclip.inference.model import Deployed, zero_shot
from everclip.inference.unknown import Judge, available, judged_all
from everclip.metrics.calibration import FEW, Calibration, fit, none_best
from everclip.metrics.unknown import HeldOut, auroc, fpr95, held_out
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.runs import card as cards
from everclip.training.evaluate import Scores, evaluate
from everclip.training.restore import device

log = logging.getLogger("everclip")

KEPT_BYTES = 2 << 30
"""Largest size of decoded pixels kept, in bytes; a larger set is decoded each time."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers on images.

    Args:
        model: with the classes that there were to choose from.
        scores: of the images that could be read; ``model.names`` are their columns.
        skipped: path -> reason, for the others.
    """

    model: Deployed
    scores: Scores
    skipped: dict[str, str]

    @property
    def accuracy(self) -> float:
        """Fraction of the images that are classified correctly."""
        return self.scores.accuracy_up_to(0, len(self.model.labels))

    def logits(self) -> Float[np.ndarray, "n c"]:
        """Return scores as logits of a softmax."""
        return self.scores.scores.astype(np.float64) * self.model.to_logits

    def truth(self) -> Int64[np.ndarray, " n"]:
        """Return each image's column."""
        return _columns(self.model, self.scores.truth)


def decoded(images: ImageSet, clip: Clip, kept: int = 0) -> Pixels:
    """Return the images' pixels as the model takes them; up to ``kept`` bytes stay in memory."""
    return Pixels(images.store, clip.eval_transform, clip.image_size, kept)


def answers(model: Deployed, images: ImageSet, pixels: Pixels | None = None) -> Answers:
    """Return scores of images labelled with the model's labels. Raises RunError where none can be read."""
    pixels = decoded(images, model.clip) if pixels is None else pixels
    everything = [Task(0, "the data", model.labels, images, images)]
    # the classifier was built before: evaluate asks for one of the task's labels, which are the model's
    scores = evaluate(lambda labels: model.classifier, everything, Loader(pixels, 128))
    return Answers(model, scores, pixels.skipped())


def examined(model: Deployed, found: Dataset, expected: bool = True, pixels: Pixels | None = None) -> Answers:
    """Test a model on a data set: among its classes if it knows those of the images, else among the data's.

    Args:
        expected: whether it should know them, so that an unknown class is worth a warning.
        pixels: of the data, where they were decoded before.

    Raises:
        UserError: there are no images to test on.
    """
    images = tested(found)
    known = set(model.names)
    unknown = [name for name in present(found, images) if name not in known]
    if not unknown:
        return answers(model, labelled(model, found, found.name), pixels)
    if model.plan is not None and expected:
        what = (
            "its text tower" if model.reads_text else f"its text tower, not its classifier ({model.method}),"
        )
        words = '"%s" was not learned by %s: testing %s among the classes of %s'
        log.warning(words, unknown[0], model.spec, what, found.name)
    return text_alone(model.encoder, found, pixels)


def text_alone(clip: Clip, found: Dataset, pixels: Pixels | None = None) -> Answers:
    """Test a model's zero-shot classifier on a data set, among its classes. Raises UserError as ``examined``, and where
    there is one class alone, which would always be right."""
    if len(found.class_names) == 1:
        raise UserError(
            f'{found.name} has one class, "{found.class_names[0]}", and a text tower chooses among those of the data:'
            " add a CLASS folder"
        )
    return answers(zero_shot(clip.name, clip, found.class_names, found.templates), tested(found), pixels)


def tested(found: Dataset) -> ImageSet:
    """Return the images to test on. Raises UserError where there are none."""
    images = found.whole()
    if not len(images):
        raise UserError(f"{found.name} has no test images: give a folder with images")
    return images


def present(found: Dataset, images: ImageSet) -> list[str]:
    """Return names of the classes that have images, in the data's order."""
    return [found.class_names[label] for label in np.unique(images.labels).tolist()]


def load(spec: str, model: Deployed, pairs: bool = False) -> Dataset:
    """Return a data set for a model, of the model's kind and with the prompts that suit it; one class is enough, unless
    its tasks are domains.

    Args:
        pairs: whether its images may have captions in place of classes.
    """
    if model.plan is None:
        return sources.load(spec, ADDITION, model=model.spec, pairs=pairs)
    config = model.plan.config
    kind = scenarios.lists(config.scenario)
    kind = ADDITION if kind == "class-incremental" else kind
    return sources.load(spec, kind, model=config.model, pairs=pairs)


def labelled(model: Deployed, found: Dataset, name: str) -> ImageSet:
    """Return all images of a data set with the model's labels.

    Args:
        name: of the data, for the message.

    Raises:
        UserError: a class that has images is not among the model's, or there are none.
    """
    images = tested(found)
    label_of = dict(zip(model.names, model.labels, strict=True))
    unknown = [one for one in present(found, images) if one not in label_of]
    if unknown:
        raise UserError(
            f'{name} has images of "{unknown[0]}", which is not one of the {len(model.names)} classes of'
            f" {model.spec}: leave that folder out, or name it in classnames.txt (folder<TAB>name)"
        )
    return images.relabel([label_of.get(one, -1) for one in found.class_names])


def load_held_out(spec: str, model: Deployed, option: str, second: Deployed | None = None) -> Dataset:
    """Return a data set to choose something on.

    Args:
        option: the option that gave it, for the message.
        second: another model that is part of the choice.

    Raises:
        UserError: it is what one of the models learned, whose probabilities would look too good, or its test images,
            which would then measure nothing.
    """
    spec = spec_of(spec)
    for one in (model, second):
        if one is None or one.plan is None:
            continue
        config = one.plan.config
        # a version names no data, and its config has the default
        if "data" in config.model_fields_set and _is_part_of(spec, config.data):
            raise UserError(f"{option} {spec} is the data of {one.spec} itself: give other images")
    return load(spec, model)


def _is_part_of(spec: str, whole: str) -> bool:
    """Return whether a data set is another one, or that one's training or test part."""
    if spec == whole:
        return True
    if not spec.partition(":")[2] or not whole.partition(":")[2]:
        return False
    this, root = (Path(name.partition(":")[2]).expanduser().resolve() for name in (spec, whole))
    parts = {"train", "test" if (root / "test").is_dir() else "val"}
    return this == root or (this.parent == root and this.name in parts)


def pretrained(model: Deployed) -> Clip:
    """Return the model that a learned one started from, at its image size. Raises UserError if it is unavailable."""
    assert model.plan is not None
    config = model.plan.config
    return zoo.load(config.model, config.image_size, device("auto"))


def fit_temperature(model: Deployed, spec: str) -> tuple[Calibration, HeldOut]:
    """Return a temperature for the model on held-out images of its classes, and their unknown scores.

    Raises:
        UserError: an image's class is not among the model's, or was never trained, the data is the model's own, or the
            model is always right, or no better than chance, so that no temperature is best.
    """
    found = load_held_out(spec, model, "--calibrate")
    images = labelled(model, found, f"--calibrate {spec}")
    repeated(model.spec, images, spec)
    plain = model.noting(calibration=None, unknown=None)
    logits, unknown, labels = judged_all(plain, plain.judge, images, decoded(images, model.clip))
    truth = _columns(model, labels)
    never = truth[np.isneginf(logits[np.arange(len(truth)), truth])]
    if len(never):
        raise UserError(
            f'--calibrate {spec} has images of "{model.names[never[0]]}", of which {model.spec} has learned none:'
            " leave that class out"
        )
    why = none_best(logits, truth)
    if why is not None:
        where = f"the {len(truth)} images of {spec}"
        raise UserError(f"no temperature is best: {model.spec} is {why} on {where}; give more of them")
    fitted = fit(logits, truth, spec)
    if fitted.images < FEW:
        log.warning("a temperature fitted on %d images is rough; use at least %d", fitted.images, FEW)
    return fitted, held_out(plain.judge.names[0], spec, unknown[:, 0])


def _columns(model: Deployed, labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    column = {label: place for place, label in enumerate(model.labels)}
    return np.array([column[label] for label in labels.tolist()], dtype=np.int64)


def tell_apart(model: Deployed, known: ImageSet, given: Dataset | None, spec: str) -> dict[str, Any]:
    """Measure how well each unknown score of a model tells images of its classes from those of a data set.

    Args:
        known: held-out images of its classes.
        given: the data set that they come from; None for the run's own.
        spec: images of other classes.

    Raises:
        UserError: the model knows a class of ``spec``, or does not know one of ``given``.
    """
    others = load(spec, model)
    both = [name for name in present(others, tested(others)) if name in model.names]
    if both:
        raise UserError(f'--unknown {spec} has images of "{both[0]}", which {model.spec} knows: leave it out')
    judge = Judge(model, available(model))
    known = known if given is None else labelled(model, given, f"--data {given.name}")
    sets = (known, tested(others))
    one, other = (judged_all(model, judge, images, decoded(images, model.clip))[1] for images in sets)
    scores = {
        name: {"auroc": auroc(mine, theirs), "fpr95": fpr95(mine, theirs)}
        for name, mine, theirs in zip(judge.names, one.T, other.T, strict=True)
    }
    return {"data": others.name, "images": len(other), "own": model.judge.names[0], "scores": scores}


def keep_calibration(model: Deployed, calibration: Calibration, unknown: HeldOut) -> Path | None:
    """Save a temperature and scores where the model was opened from: in the model folder, or in the run directory.

    Returns:
        the file; None where the model has no folder of its own, or some of its classes were left out, as the values are
        then fitted only on the others.

    Raises:
        UserError: the file cannot be written, or the folder holds another model by now, which has values of its own.
    """
    if model.plan is None or model.labels != seen(model.plan.tasks):
        return None
    folder = Path(model.spec).expanduser()
    if model.identity and cards.identity(folder) != model.identity:
        raise UserError(f"{folder} has changed since it was opened: repeat the command")
    of = {"model": model.identity} if model.identity else {"stage": len(model.plan.tasks) - 1}
    try:
        return cards.write_calibration(folder, of, calibration, unknown)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): make it writable") from error
