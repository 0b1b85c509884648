"""Fit what makes a version's answers reliable, on its check images: a temperature, and thresholds for unknown pictures.

Scores of check images are those of a classifier that has not learned them: a closed form is solved without them, and
its distances leave out each of them in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.inference.assess import decoded
from everclip.inference.model import Deployed
from everclip.inference.unknown import LOGIT, available, least_rate, left_out, maximum_logit
from everclip.methods.base.method import sharpness
from everclip.methods.shared.statistics import Linear, Statistics
from everclip.metrics.calibration import Calibration, fit, none_best
from everclip.metrics.unknown import HeldOut, held_out
from everclip.updating.classifiers import (
    LAYERED,
    closed_form,
    columns_of,
    features,
    scores,
    text_form,
)
from everclip.updating.state import State

CALIBRATED = 40
"""Number of check images needed to fit a temperature."""
DATA = "check images of the update"
BLIND = "without the check images some class has no image to be known by"
SOLVED: dict[str, tuple[str, ...]] = {"ridge": ("prior", "lam", "unseen"), "ncm": (), LAYERED: ()}
"""The methods whose classifiers are solved from a version's sums, and those of their options that may vary."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A version's answers to its check images.

    Args:
        scores: by a classifier that has not learned them, one column per class.
        labels: of the images.
        rows: for a closed form with these images in its sums, the features that it reads, which then set thresholds.
    """

    scores: Float32[np.ndarray, "n c"]
    labels: Int64[np.ndarray, " n"]
    rows: Float32[Tensor, "n m"] | None = None

    @classmethod
    def of(
        cls,
        state: State,
        scores: Float32[np.ndarray, "n c"],
        labels: Int64[np.ndarray, " n"],
        rows: Float32[Tensor, "n m"] | None,
    ) -> Checked:
        """Return the answers, without ``rows`` where sums were estimated and no image can be left out exactly."""
        estimated = any(
            report.get("second_moments_made_anew") for report in state.record.get("forgotten", [])
        )
        return cls(scores, labels, None if estimated else rows)

    @property
    def blind(self) -> bool:
        """Whether the classifier that has not learned them lacks scores of some class."""
        return not bool(np.isfinite(self.scores).all())

    def unknown(self, model: Deployed) -> HeldOut:
        """Return their unknown scores."""
        name = available(model)[-1]
        if name == LOGIT or self.rows is None:
            return held_out(LOGIT, DATA, maximum_logit(model, self.scores))
        return held_out(name, DATA, left_out(model, name, self.rows, self.labels))


def fitted(model: Deployed, checked: Checked, before: Deployed | None) -> tuple[Deployed, dict[str, Any]]:
    """Return the model with a temperature and with scores for thresholds, and a report on them.

    An unchanged model keeps whichever of the two it had. With fewer than ``CALIBRATED`` check images, or where no
    temperature is best on them, the previous model's temperature is kept, unless that was another kind of classifier.

    Returns:
        the model; and for the verdict ``calibration`` and ``unknown``, each with ``words``.
    """
    calibration, told = _temperature(model, checked, before)
    held = model.unknown if model is before else None
    if held is None and len(checked.labels) and not checked.blind:
        held = checked.unknown(model)
    about: dict[str, Any] = {"score": available(model)[-1], "images": 0, "finest_rate": None}
    lacking = BLIND if checked.blind else "no check images to set a threshold by"
    words = f"{lacking}; give held-out images with predict --calibrate"
    if held is not None:
        about |= {"score": held.score, "images": held.images, "finest_rate": held.finest}
        rates = f"--unknown-at from {least_rate(held.finest)} % up"
        words = f"predict {rates}, by {held.score} on {held.images} check images"
    about["words"] = f"unknown pictures: {words}"
    return model.noting(calibration=calibration, unknown=held), {"calibration": told, "unknown": about}


def _temperature(
    model: Deployed, checked: Checked, before: Deployed | None
) -> tuple[Calibration | None, dict[str, Any]]:
    """Return the temperature of a model, and what to say of it."""
    count, old = len(checked.labels), None if before is None else before.calibration
    other = before is not None and _kind(before) != _kind(model)
    told: dict[str, Any] = {"images": count, "needed": CALIBRATED, "fitted": False}
    logits = checked.scores.astype(np.float64) * sharpness(model.classifier)
    lacking = None
    if count < CALIBRATED:
        lacking = f"{count} check images are too few for a temperature ({CALIBRATED} are needed)"
    elif checked.blind:
        lacking = BLIND
    elif never := none_best(logits, checked.labels):
        lacking = f"the classifier is {never} on {count} check images, so no temperature is best"
    if model is before and old is not None:
        made, words = old, f"the classifier is unchanged, and so is its temperature, {old.temperature:.3g}"
    elif lacking is None:
        made = fit(logits, checked.labels, DATA)
        told |= {"fitted": True, "ece_before": made.ece_before, "ece_after": made.ece}
        words = (
            f"temperature {made.temperature:.3g}, fitted on {count} check images; calibration error"
            f" {made.ece_before:.1%} before, {made.ece:.1%} after"
        )
    else:
        made, kept = None if other else old, "there was no temperature before"
        if old:
            end = "was another classifier's and is dropped" if other else "is kept"
            kept = f"the old temperature, {old.temperature:.3g}, {end}"
        words = f"{lacking}: {kept}"
    told |= {"temperature": made.temperature if made else None, "words": f"probabilities: {words}"}
    return made, told


def _kind(model: Deployed) -> str:
    """Return what classifies: scores of two kinds have no temperature in common."""
    return "text" if model.reads_text else model.method


def solved_anew(before: State, after: State) -> Deployed:
    """Return the model of ``before`` made anew for the classes, and from the sums, of ``after``.

    Raises:
        UserError: its classifier does not follow from the sums.
    """
    model = before.model
    assert model is not None
    if model.reads_text:
        return text_form(after.spec, after.known, model.encoder, model.method)
    if not _from_sums(before):
        raise UserError(
            f"{before.spec} cannot be edited, as its sums cannot reproduce the {model.method} classifier of a run:"
            " update it first, with --method ridge or layers"
        )
    assert model.plan is not None
    method = {"name": model.method, **model.plan.config.method.options}
    return closed_form(after.spec, after.known, after.frozen, method, after.sums)


def _from_sums(state: State) -> bool:
    """Return whether a version's classifier follows from its sums: it is solved with the options that an update gives,
    has no means of its own per domain, and has learned no image that is not in the sums."""
    model = state.model
    assert model is not None
    if model.reads_text or model.method not in SOLVED:
        return False
    assert model.plan is not None
    method, options = model.plan.method, dict(model.plan.config.method.options)
    assert isinstance(method, Statistics)
    given = {key: options[key] for key in SOLVED[model.method]}
    usual = state.known.card("method", {"name": model.method, **given}).config().method.options
    counts = method.counts.cpu()
    apart = len(method.cells().counts) > int((counts > 0).sum())
    known = counts[list(model.labels)] <= state.sums.counts  # a run's labels are not in the order learned
    return options == dict(usual) and not apart and bool(known.all())


def unlearned(
    state: State, images: ImageSet, pixels: Pixels, every: Float32[Tensor, "n m"] | None = None
) -> tuple[Float32[np.ndarray, "n c"], Float32[Tensor, "n d"] | None]:
    """Return scores of images by the version's classifier as if it had learned none of them.

    A classifier solved from sums is solved again without them. After an update that chose ``nothing`` the sums hold
    more images than it has learned, and it is scored as if it had learned those too.

    Args:
        every: features of ``images`` by the frozen model, if already computed.

    Returns:
        the scores; and the features that the classifier reads, if it was solved without the images.
    """
    model = state.model
    assert model is not None
    if not _from_sums(state):
        return scores(model, images, pixels), None
    if every is None:
        every = features(state.frozen, images, pixels, state.layers)
    sums = state.sums.minus(every, torch.from_numpy(images.labels), torch.from_numpy(images.ids))
    apart = solved_anew(state, replace(state, sums=sums)).classifier
    assert isinstance(apart, Linear)
    rows = every[:, columns_of(model.method, state.frozen)]
    return apart.scored(rows.to(apart.weight)).float().cpu().numpy(), rows


def refitted(state: State, before: Deployed) -> tuple[State, dict[str, Any]]:
    """Return a version with a newly solved classifier, its temperature and thresholds refitted; and a report on
    them."""
    model, checks = state.model, state.checks
    assert model is not None
    found, rows = unlearned(state, checks, decoded(checks, model.encoder))
    made, told = fitted(model, Checked.of(state, found, checks.labels, rows), before)
    return replace(state, model=made), told
