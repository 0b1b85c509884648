"""Open and save a learned model: an encoder, its classes, and its classifier.

What can be opened, and which classes there are to choose from:

    a run directory          those learned up to its newest finished task
    a model folder           those in its everclip.json: what ``everclip export`` and ``everclip merge`` write
    any other model          those given: ``lite``, NAME:TAG, hf-hub:ORG/REPO, local-dir:FOLDER (of a run or model
                             folder too, whose text tower is then asked)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from everclip.config import Config
from everclip.config.models import MethodChoice
from everclip.data.formats.folders import check_names
from everclip.data.prompts import PHOTO
from everclip.data.scenario import seen
from everclip.data.templates import TEMPLATES
from everclip.errors import UserError, suggest
from everclip.inference.unknown import Judge, available
from everclip.methods.base.method import TextClassifier, sharpness
from everclip.methods.shared.statistics import LinearStatistics
from everclip.metrics.calibration import Calibration
from everclip.metrics.unknown import HeldOut
from everclip.models import zoo
from everclip.models.catalogue import FEATURES, LITE
from everclip.models.clip import Clip, Images
from everclip.models.savable import save_state
from everclip.models.states import read_state
from everclip.runs import card as cards
from everclip.runs.card import FILE, METHOD_FILE, Card, CardTask
from everclip.runs.run import Run
from everclip.system.atomic import recover
from everclip.system.reading import readable
from everclip.training import plan as plans
from everclip.training.plan import Plan
from everclip.training.restore import STATE, device, freeze, grow, load_model, open_run

LOCAL = "local-dir:"


@dataclass(frozen=True, eq=False)
class Deployed:
    """A model with its classes.

    Args:
        spec: what it was opened by.
        clip: the model; where the text tower classifies, ``encoder`` may be another (averaged weights).
        classes: every class name; its index is its label.
        labels: those to choose from, in the order learned: the columns of all scores.
        templates: prompts of the class embeddings.
        build: makes a classifier of some labels.
        plan: what it was trained with; without images unless it was opened for them.
        calibration: the temperature that was fitted for it.
        unknown: scores of held-out images of its classes, which set thresholds.
        identity: which model its folder held when it was opened; empty for what is not a model folder.
        text_only: whether ``build`` asks the text tower of ``clip``, so that the towers are known without a classifier.
    """

    spec: str
    clip: Clip
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    templates: tuple[str, ...]
    build: Callable[[tuple[int, ...]], nn.Module]
    plan: Plan | None = None
    calibration: Calibration | None = None
    unknown: HeldOut | None = None
    identity: str = ""
    text_only: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.classes[label] for label in self.labels)

    @cached_property
    def classifier(self) -> nn.Module:
        """Maps normalised images to scores, one column per label."""
        with torch.no_grad():  # not inference_mode, whose tensors an exporter cannot trace
            return self.build(self.labels).eval()

    @cached_property
    def judge(self) -> Judge:
        """Says how unknown images look, by the score whose thresholds are kept, else by the model's own."""
        names = available(self)
        kept = self.unknown is not None and self.unknown.score in names
        return Judge(self, [self.unknown.score if kept and self.unknown else names[-1]])

    @property
    def method(self) -> str:
        """The name of the method that trained it."""
        return "zero_shot" if self.plan is None else self.plan.config.method.name

    @property
    def reads_text(self) -> bool:
        """Whether the text tower's class embeddings are the classifier, so that the two towers are the whole model."""
        linear = self.plan is not None and isinstance(self.plan.method, LinearStatistics)  # unsolved, too
        return self.text_only or (not linear and isinstance(self.classifier, TextClassifier))

    def noting(self, **notes: object) -> Deployed:
        """Return the same model with another ``calibration``, ``unknown`` or ``identity``, and its classifier."""
        made = replace(self, **notes)
        vars(made).update({name: found for name, found in vars(self).items() if name == "classifier"})
        return made

    def check_classes(self) -> None:
        """Raise UserError where it has learned images with captions, and no classes."""
        if self.plan is not None and self.plan.data.captioned:
            raise UserError(f"{self.spec} has learned no classes: use {LOCAL}{self.spec} with --classes")

    @property
    def encoder(self) -> Clip:
        """The model whose features are scored, as far as it is a CLIP model."""
        if self.text_only:  # encoding the prompts of many classes takes minutes
            return self.clip
        return self.classifier.clip if isinstance(self.classifier, TextClassifier) else self.clip

    @property
    def to_logits(self) -> float:
        """The factor that makes a score the logit of a softmax: 1 / temperature is part of it."""
        return sharpness(self.classifier) / (self.calibration.temperature if self.calibration else 1.0)

    @torch.inference_mode()
    def logits(self, images: Images) -> Float[np.ndarray, "b c"]:
        """Return logits of images as the model takes them; softmax makes probabilities. -inf: a class never trained."""
        return (self.classifier(images).double() * self.to_logits).cpu().numpy()

    def among(self, names: Sequence[str]) -> Deployed:
        """Return the same model with some of its classes to choose from.

        It keeps no scores of held-out images, as those were chosen among all classes.

        Raises:
            UserError: a class was not learned.
        """
        label_of = dict(zip(self.names, self.labels, strict=True))
        for name in names:
            if name not in label_of:
                near = suggest(name, self.names)
                raise UserError(
                    f'"{name}" is not one of the {len(self.names)} classes that {self.spec} has learned'
                    f"{near if 'did you mean' in near else ';'} {LOCAL}{self.spec} takes any class"
                )
        wanted = {label_of[name] for name in names}
        labels = tuple(label for label in self.labels if label in wanted)
        return self if labels == self.labels else replace(self, labels=labels, unknown=None)


def zero_shot(spec: str, clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Deployed:
    """Return a model whose classes are whatever the text tower is asked for."""

    def build(labels: tuple[int, ...]) -> nn.Module:
        return TextClassifier(clip, clip.class_embeddings([names[label] for label in labels], templates))

    labels = tuple(range(len(names)))
    return Deployed(spec, clip, tuple(names), labels, tuple(templates), build, text_only=True)


def is_learned(spec: str) -> bool:
    """Return whether ``spec`` is a run directory or a model folder, which have classes of their own."""
    path = Path(spec).expanduser()
    return (path / "config.toml").is_file() or (path / FILE).is_file()


def check_own(spec: str, options: Mapping[str, object]) -> None:
    """Raise UserError for an option, by name, that is given though the learned model ``spec`` has its own."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given:
        raise UserError(f"{given} is for models that have learned nothing; {spec} has its own: leave it out")


def open_model(
    spec: str,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    templates: Sequence[str] | None = None,
    pairs: bool = False,
) -> Deployed:
    """Return the model that ``spec`` names, ready to use.

    Args:
        spec: a run directory, a model folder, or any model that training can start from.
        classes: those to choose from: of a learned model some of its own, of any other model whatever it is asked for.
        image_size, templates: of a model that has learned nothing; the others have their own.
        pairs: whether it may have learned images with captions, and no classes.

    Raises:
        UserError: no such model, one without classes, or its folder has become another model's meanwhile.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        raise UserError(f"{spec} is a file: give a run directory, a model folder or a model's name")
    recover(path)  # from an interrupted rollback
    if not is_learned(spec):
        if classes is None:
            zoo.check(spec)
            raise UserError(f"{spec} comes without classes: give --classes FILE, one name per line")
        check_names(classes, "the classes given")
        prompts = templates or templates_of(spec)
        return zero_shot(spec, zoo.load(spec, image_size, device("auto")), classes, prompts)
    check_own(spec, {"--image-size": image_size, "--templates": templates})
    found = _of_folder(path, spec) if (path / FILE).is_file() else _of_checkpoint(path)
    if found.identity and cards.identity(path) != found.identity:  # its files may be of two versions
        raise UserError(f"{spec} has changed while it was opened: repeat the command")
    if not pairs:
        found.check_classes()
    return found if classes is None else found.among(classes)


def of_run(path: Path) -> Deployed:
    """Return a run's model after its newest finished task, with the run's images in its plan.

    Raises:
        UserError: ``path`` is not a run, has finished no task, or its data is not what it was.
    """
    plan, clip, stage = open_run(path)
    found = of_plan(str(path), plan, clip, stage)
    return replace(found, **cards.read_calibration(path, {"stage": stage})._asdict())


def of_plan(spec: str, plan: Plan, clip: Clip, stage: int) -> Deployed:
    """Return a plan's method, grown and with its state filled in, as the classifier of the tasks up to ``stage``."""
    labels = seen(plan.tasks[: stage + 1])
    prompts, method = plan.prompts, plan.method
    plan = replace(plan, tasks=plan.tasks[: stage + 1])

    def build(labels: tuple[int, ...]) -> nn.Module:
        return method.classifier(clip, labels)

    return Deployed(spec, clip, prompts.names, labels, prompts.templates, build, plan)


def _of_checkpoint(path: Path) -> Deployed:
    """Return a run's model without its images, which may be elsewhere: the checkpoint's card says enough."""
    run = Run(path, Run.read_config(path))
    place = run.store.newest_task()
    folder = None if place is None else run.store.folder(place)
    if place is None or folder is None or not (folder / FILE).is_file():
        return of_run(path)
    found = _of_folder(folder, str(path))
    return replace(found, **cards.read_calibration(path, {"stage": place.task - 1})._asdict(), identity="")


def _of_folder(folder: Path, spec: str) -> Deployed:
    """Return a model folder, or a checkpoint, from its card alone."""
    identity = cards.identity(folder)
    card = cards.read(folder)
    kept = cards.read_calibration(folder, {"model": identity})
    fitted = {"calibration": kept.calibration or card.calibration, "unknown": kept.unknown or card.unknown}
    plan = plans.plan_of(card)
    if card.classifier == "text":
        clip = zoo.load(f"{LOCAL}{folder}", plan.config.image_size, device("auto"))
        known = zero_shot(spec, clip, card.classes, card.templates)
        known = replace(known, labels=seen(plan.tasks), plan=plan)
        return replace(known, **fitted, identity=identity)
    file = folder / (STATE if (folder / STATE).is_file() else METHOD_FILE)
    with readable(file, "export the model again"):
        state = read_state(file)
    if file.name == STATE:
        state = state["method"] if isinstance(state, dict) and "method" in state else {}
    clip = load_model(plan, f"{LOCAL}{folder}")
    for task in plan.tasks:
        grow(plan, clip, task)
    try:
        plan.method.load_state_dict(state)
    except Exception as error:  # another version's state has other keys or shapes, and a stranger's anything
        raise UserError(f"{file} does not fit {FILE} beside it: export the model again") from error
    freeze(plan, clip)
    found = of_plan(spec, plan, clip, len(plan.tasks) - 1)
    return replace(found, **fitted, identity=identity)


def card_of(model: Deployed) -> Card:
    """Return the card of a model's folder; if the text tower classifies, with only the learned classes."""
    fitted = {"calibration": model.calibration, "unknown": model.unknown}
    if model.plan is None:
        method = MethodChoice(name="zero_shot")
        config = Config(model=model.spec, image_size=model.clip.image_size, method=method)
        card = Card(
            classes=list(model.classes),
            tasks=[CardTask(name="asked for", labels=list(model.labels))],
            templates=list(model.templates),
            classifier="text",
            settings=cards.settings(config),
        )
        return card.model_copy(update=fitted)
    assert model.labels == seen(model.plan.tasks), "a folder keeps all learned classes"
    card = plans.card_of(model.plan, len(model.plan.tasks)).model_copy(update=fitted)
    if not model.reads_text:
        return card
    place = {label: place for place, label in enumerate(model.labels)}
    tasks = [CardTask(name=t.name, labels=[place[label] for label in t.labels]) for t in card.tasks]
    return card.model_copy(update={"classifier": "text", "classes": list(model.names), "tasks": tasks})


def save(model: Deployed, folder: Path) -> None:
    """Write a model folder: an open_clip ``local-dir``, everclip.json, and the method's state where it classifies."""
    model.encoder.save(folder)
    cards.write(folder, card_of(model))
    if not model.reads_text:
        assert model.plan is not None
        save_state(model.plan.method.state_dict(), folder / METHOD_FILE)


def templates_of(spec: str) -> tuple[str, ...]:
    """Return the prompts of a model for which the user gave none; empty for a model that takes features."""
    if spec.startswith(FEATURES):
        return ()
    return TEMPLATES if spec == LITE else (PHOTO,)
