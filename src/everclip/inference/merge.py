"""Merge two models by averaging their weights: WiSE-FT after training (Wortsman et al. 2022, arXiv 2109.01903).

    theta(alpha) = (1 - alpha) theta_other + alpha theta_learned        each weight and float buffer of both towers,
                                                                        and the mean that center=true subtracts

theta_other is the model that training began with, or another one that began with the same. The classifier must be the
text tower: heads and towers that a method added have no counterpart. Alpha is chosen on held-out images.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from everclip.data.images import Dataset
from everclip.data.pixels import Pixels
from everclip.data.scenario import Task, seen
from everclip.errors import UserError
from everclip.inference.assess import KEPT_BYTES, decoded, examined, load_held_out, pretrained
from everclip.inference.learned import repeated
from everclip.inference.model import LOCAL, Deployed, is_learned, open_model, zero_shot
from everclip.methods.shared.weights import blend
from everclip.models import zoo
from everclip.models.clip import Clip

log = logging.getLogger("everclip")

GRID = tuple(step / 10 for step in range(11))
"""The fractions to try."""
ZERO_SHOT = "zero-shot"
_SAME = "give two runs with the same center="


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models of one architecture.

    Args:
        learned: the learned model, with the classes of both.
        other: the weights at alpha 0.
        other_name: where these come from.
        second: the learned model that they come from, if they come from one.
    """

    learned: Deployed
    other: Clip
    other_name: str
    second: Deployed | None = None

    def mixed(self, alpha: float) -> Deployed:
        """Return the model with a fraction ``alpha`` of the learned weights."""
        learned = self.learned
        clip = mixed(self.other, learned.encoder, alpha)
        made = zero_shot(learned.spec, clip, learned.classes, learned.templates)
        return replace(made, labels=learned.labels, plan=learned.plan)


@torch.no_grad()
def mixed(before: Clip, after: Clip, share: float) -> Clip:
    """Return a model with a fraction of the weights of ``after``; 0 and 1 give the end points bit for bit."""
    made = copy.deepcopy(after)
    made.model.load_state_dict(blend(before.model.state_dict(), after.model.state_dict(), share))
    if before.center is not None and after.center is not None:
        made.center_images(torch.lerp(before.center, after.center, share))  # the ends bit for bit, too
    return made


def pair(spec: str, other: str) -> Pair:
    """Return the model ``spec`` and what it is mixed with.

    Args:
        other: ``zero-shot`` for what ``spec`` began with; else a run, a model folder or any model.

    Raises:
        UserError: one of them is not available, classifies by more than its text tower, or cannot be mixed with the
            other.
    """
    learned, second = _read(spec), None
    if other == ZERO_SHOT:
        clip = pretrained(learned)
        name = clip.name
    elif is_learned(other):
        second = _read(other)
        clip, name = second.encoder, other
        learned = _with_classes_of(learned, second)
    else:
        clip, name = zoo.load(other, learned.clip.image_size, learned.clip.device), other
    clip = whole(clip)
    _check(learned, clip, name)
    if second is not None and learned.encoder.centered and not clip.centered:
        raise UserError(f"of {spec} and {name} only the former subtracts a mean: {_SAME}")
    return Pair(learned, clip, name, second)


def _read(spec: str) -> Deployed:
    if not is_learned(spec):
        raise UserError(f"{spec} has learned nothing: give a run directory or a model folder")
    model = open_model(spec)
    if not model.reads_text:
        raise UserError(
            f"{spec} was learned with {model.method}, whose classifier is more than the text tower: give a"
            " run that classifies by text"
        )
    known = zero_shot(spec, whole(model.encoder), model.classes, model.templates)
    return replace(known, labels=model.labels, plan=model.plan)


def whole(clip: Clip) -> Clip:
    """Return the model in one piece, even if the frozen part of its image tower was cut off."""
    if clip.trunk is None:
        return clip
    with tempfile.TemporaryDirectory() as folder:
        clip.save(folder)
        return zoo.load(f"{LOCAL}{folder}", clip.image_size, clip.device)


def _with_classes_of(learned: Deployed, second: Deployed) -> Deployed:
    """Return the first model with the second one's classes after its own."""
    new = tuple(name for name in second.names if name not in learned.names)
    if not new:
        return learned
    assert learned.plan is not None
    classes = learned.names + new
    first, plan = len(learned.names), learned.plan
    none = plan.data.train.of_classes([])
    label_of = {label: place for place, label in enumerate(learned.labels)}
    tasks = [
        Task(t.index, t.name, tuple(label_of[label] for label in t.classes), none, none) for t in plan.tasks
    ]
    tasks.append(Task(len(tasks), second.spec, tuple(range(first, len(classes))), none, none))
    made = zero_shot(learned.spec, learned.encoder, classes, learned.templates)
    prompts = replace(plan.prompts, names=classes)
    return replace(made, labels=seen(tasks), plan=replace(plan, tasks=tasks, prompts=prompts))


def _check(learned: Deployed, other: Clip, name: str) -> None:
    """Refuse weights that cannot be mixed. Raises UserError."""
    ours, theirs, both = learned.encoder, other, f"{learned.spec} and {name}"
    shapes = [{key: v.shape for key, v in clip.model.state_dict().items()} for clip in (ours, theirs)]
    if shapes[0] != shapes[1] or repr(ours.model) != repr(theirs.model):
        raise UserError(f"{both} have different architectures: give models trained from the same one")
    if (ours.mean, ours.std, ours.image_size) != (theirs.mean, theirs.std, theirs.image_size):
        raise UserError(f"{both} prepare images differently: give models trained from the same one")
    if theirs.centered and not ours.centered:
        raise UserError(f"of {both} only the latter subtracts a mean: {_SAME}")


@dataclass(frozen=True, eq=False)
class Tried:
    """The result of a fraction on the held-out images: mean accuracy over the data sets."""

    alpha: float
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the data sets."""
        return float(np.mean(self.accuracies))


def held_out(models: Pair, specs: Sequence[str]) -> list[tuple[Dataset, Pixels]]:
    """Load the data sets to choose on, decoded once. Raises UserError for either model's own data."""
    found = [load_held_out(spec, models.learned, "--validate", models.second) for spec in specs]
    for one, model in product(found, dict.fromkeys([models.learned.spec, models.other_name])):
        repeated(model, one.whole(), one.name)
    return [(data, decoded(data.whole(), models.other, KEPT_BYTES)) for data in found]


def try_share(models: Pair, alpha: float, sets: Sequence[tuple[Dataset, Pixels]]) -> Tried:
    """Return accuracy of one share on each data set."""
    model = models.mixed(alpha)
    return Tried(alpha, tuple(examined(model, data, False, pixels).accuracy for data, pixels in sets))


def best(tried: Sequence[Tried]) -> Tried:
    """Return the fraction with the highest mean accuracy; ties go to the one nearest to a half."""
    return min(tried, key=lambda one: (-one.mean, abs(one.alpha - 0.5)))
