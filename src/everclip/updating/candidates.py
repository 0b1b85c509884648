"""Make the candidates of an update, with their scores on the check images.

nothing         the deployed model; if its text tower classifies or it has no class yet, with the new names too
means           class means of frozen features (method ncm)
ridge           ridge regression on frozen features (method ridge)
layers          discriminants on several layers of the frozen tower (method multilayer_lda)
trained         both towers trained on the new images and the exemplars
interpolated    weights between the initial and the trained ones (WiSE-FT)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from everclip.data.pixels import Pixels
from everclip.inference.merge import mixed
from everclip.inference.model import Deployed
from everclip.methods.shared.ridge import USUAL
from everclip.methods.shared.statistics import Linear
from everclip.methods.shared.sums import Sums
from everclip.models.clip import Clip
from everclip.system.progress import Progress
from everclip.updating.classifiers import (
    LAYERED,
    Known,
    closed_form,
    columns_of,
    scores,
    text_form,
)
from everclip.updating.holdout import Checks
from everclip.updating.reliance import unlearned
from everclip.updating.rule import Decision
from everclip.updating.state import State
from everclip.updating.training import Lesson, trained

TRAINED = ("trained", "interpolated")
NAMES = ("nothing", "means", "ridge", "layers", *TRAINED)
SHARES = (0.25, 0.5, 0.75)
"""Fractions of the trained weights to try."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A possible next version.

    Args:
        name: of ``NAMES``.
        scores: of the check images, one column per class; -inf for classes that it cannot recognise.
        build: makes the model from all images; for a closed form that is not the model that was checked.
        eligible: whether it can recognise all classes.
        clip: the trained weights.
        detail: how it was made, for the verdict.
        rows: for a closed form, the features of the check images that it reads.
    """

    name: str
    scores: Float32[np.ndarray, "n c"]
    build: Callable[[], Deployed]
    seconds: float
    eligible: bool = True
    clip: Clip | None = None
    detail: str = ""
    rows: Float32[Tensor, "n m"] | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """The material from which candidates are made and on which they are checked.

    Args:
        known: all classes, old and new.
        sums: of all learned images, those of this update included; ``checked``: the same without the check images.
        checks: old and new images that nothing is trained on.
        features: of the check images, by the frozen model.
    """

    state: State
    known: Known
    lesson: Lesson
    sums: Sums
    checked: Sums
    checks: Checks
    features: Float32[Tensor, "n m"]
    pixels: Pixels
    decision: Decision


def candidates(trial: Trial, progress: Progress) -> Iterator[Candidate]:
    """Yield all candidates, the cheap ones first."""
    if trial.state.model is not None or trial.known.templates:
        yield nothing(trial)
    yield solved(trial, "means", {"name": "ncm"}, "class means")
    unseen = bool((~trial.checked.learned).any())
    options: dict[str, Any] = {"name": "ridge", "prior": trial.decision.prior, "lam": USUAL}
    if unseen and trial.decision.prior == "text":
        options["unseen"] = "text"
    yield solved(trial, "ridge", options, f"prior={trial.decision.prior}, lam={USUAL}")
    if trial.state.layers:
        yield solved(trial, "layers", {"name": LAYERED}, "the last layers, pictures and mirror images")
    if trial.decision.train:
        yield from learned(trial, progress)


def nothing(trial: Trial) -> Candidate:
    """Return the deployed model, or the text tower of one that knows no class, scored as if it had not learned the
    check images."""
    begin, state = time.perf_counter(), trial.state
    model, detail = state.model, "as deployed"
    if model is None:
        wide = text_form(state.spec, trial.known, state.frozen, "zero_shot")
        detail = "the text tower with the class names"
    elif model.reads_text and trial.known.templates and trial.known.names != model.names:
        wide = text_form(state.spec, trial.known, model.encoder, model.method)
        detail = "as deployed, the text tower with the new names too"
    else:
        wide = model
    if wide is model:
        found, _ = unlearned(state, trial.checks.images, trial.pixels, trial.features)
    else:
        found = scores(wide, trial.checks.images, trial.pixels)
    lacking = len(trial.known.names) - found.shape[1]
    padded = np.pad(found, ((0, 0), (0, lacking)), constant_values=-np.inf)
    return Candidate("nothing", padded, lambda: wide, time.perf_counter() - begin, lacking == 0, None, detail)


def solved(trial: Trial, name: str, method: dict[str, Any], detail: str) -> Candidate:
    """Return a classifier solved from sums: checked without the check images, built with them."""
    begin, clip, spec = time.perf_counter(), trial.state.frozen, trial.state.spec
    linear = closed_form(spec, trial.known, clip, method, trial.checked).classifier
    assert isinstance(linear, Linear)
    weight, bias = linear.weight.cpu(), linear.bias.cpu()
    rows = trial.features[:, columns_of(method["name"], clip)]
    found = (rows.double() @ weight + bias).float().numpy()
    eligible = bool(bias.isfinite().all())

    def build() -> Deployed:
        return closed_form(spec, trial.known, clip, method, trial.sums)

    return Candidate(name, found, build, time.perf_counter() - begin, eligible, None, detail, rows)


def learned(trial: Trial, progress: Progress) -> Iterator[Candidate]:
    """Yield the trained model, and its best mixture with the initial weights."""
    begin, state, decision = time.perf_counter(), trial.state, trial.decision
    start = state.tuned or (state.encoder if state.model and state.model.reads_text else state.frozen)
    after = trained(start, trial.lesson, decision, progress)

    def candidate(name: str, clip: Clip, seconds: float, detail: str) -> Candidate:
        model = text_form(state.spec, trial.known, clip, decision.method)
        found = scores(model, trial.checks.images, trial.pixels)
        return Candidate(name, found, lambda: model, seconds, True, clip, detail)

    took = time.perf_counter() - begin
    how = f"{decision.method}, {decision.steps} steps, lr x {decision.lr_share:.2g}"
    yield candidate("trained", after, took, how)
    begin = time.perf_counter()
    tried = [
        candidate("interpolated", mixed(start, after, share), took, f"{share:g} of the trained weights")
        for share in SHARES
    ]
    best = max(tried, key=lambda one: trial.checks.accuracy(one.scores) or 0.0)
    yield replace(best, seconds=took + time.perf_counter() - begin)
