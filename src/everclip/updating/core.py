"""Update a model: examine the data, make candidates, choose the best on check images, test it, and report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from everclip.data.formats.folders import check_texts
from everclip.data.images import Dataset, ImageSet
from everclip.data.prompts import PHOTO
from everclip.errors import UserError, check_choice, check_range
from everclip.system.progress import Progress
from everclip.updating import rule
from everclip.updating.candidates import NAMES, TRAINED, Candidate, Trial, candidates
from everclip.updating.classifiers import features, scores, text_form
from everclip.updating.gate import Held, check_measured, compare, gate_of, unseen
from everclip.updating.holdout import Checks
from everclip.updating.images import Pictures, Watch, collect, unwatched
from everclip.updating.index import KEEP, Asked, Guard, words
from everclip.updating.reliance import Checked, fitted
from everclip.updating.start import everything
from everclip.updating.state import State
from everclip.updating.training import Lesson

AUTO = "auto"
ERRORS = 2.0
"""Number of standard errors by which a candidate must beat the preferred one to replace it."""


@dataclass(frozen=True)
class Options:
    """Options of an update.

    Args:
        method: ``auto`` or a candidate's name.
        exemplars: images per class to keep in the model folder, check images included.
        max_drop: percentage points that the old classes may lose.
        same: new class name -> old class name, where they are one class.
        seed: of training.
        unmeasured: whether to continue if no held-out image is of an old class, so that the drop is not measured.
        index: how to treat an index of embeddings; None: only report what the update does to one.
    """

    method: str = AUTO
    exemplars: int = 10
    max_drop: float = 1.0
    same: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    unmeasured: bool = False
    index: Asked | None = None

    def check(self) -> None:
        """Raise UserError for an impossible value."""
        check_choice("--method", self.method, (AUTO, *NAMES))
        check_range("--exemplars", self.exemplars, 0, 100_000)
        check_range("--seed", self.seed, 0, 2**32 - 1)
        check_range("--max-drop", self.max_drop, 0, 100, "percentage points")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The next version and its verdict.

    Args:
        passed: whether the old classes lose no more than the gate allows.
    """

    state: State
    verdict: dict[str, Any]
    passed: bool


def prepare(
    state: State, new: Dataset, options: Options, watch: Watch = unwatched, test: Dataset | None = None
) -> tuple[Pictures, rule.Facts, rule.Decision]:
    """Return the images, the rule's facts and its decision; nothing is trained. Raises UserError for bad data."""
    options.check()
    check_texts(new, new.name)
    state = spoken(state, new)
    tested = () if test is None else test.class_names
    pictures = collect(state, new, options.exemplars, options.same, watch, tested)
    old, labels = set(range(len(state.known.names))), set(pictures.labels)
    summed = state.sums.learned.numpy().copy()
    summed[np.unique(pictures.older.labels)] = True
    counts = pictures.new.counts(len(pictures.known.names))[pictures.labels]
    facts = rule.Facts(
        old=len(old),
        new=len(labels - old),
        again=len(labels & old),
        images=len(pictures.new),
        per_class=float(np.median(counts)) if labels else 0.0,
        exemplars=len(pictures.exemplars) / len(old) if old else 0.0,
        summed=float(summed.mean()) if len(summed) else 1.0,
        layers=state.layers is not None,
        zero_shot=_zero_shot(state, pictures),
        towers=bool(state.known.templates),
    )
    if options.method in TRAINED and not facts.towers:
        raise UserError(f"--method {options.method} trains towers, which {state.spec} lacks: use auto")
    keep = options.index is not None and options.index.mode == KEEP
    return pictures, facts, rule.decide(facts, options.method, keep)


def checked(
    state: State, new: Dataset, test: Dataset | None, options: Options, watch: Watch = unwatched
) -> tuple[Guard, Pictures, rule.Facts, rule.Decision, Held | None]:
    """Return what ``prepare`` does, after what guards the index and before the held-out images; nothing is trained.
    Raises UserError for all that an update refuses before it trains."""
    guard = Guard(state, options.index)
    pictures, facts, decision = prepare(state, new, options, watch, test)
    tested = None if test is None else unseen(state, pictures, test, options.same, watch)
    if not options.unmeasured:
        check_measured(state, tested, options.max_drop)
    return guard, pictures, facts, decision, tested


def spoken(state: State, new: Dataset) -> State:
    """Return the state with the prompts of its first data set, if that has its own and the model has a text tower;
    without prompts if it takes features, where only old classes have texts."""
    if not state.frozen.image_size:
        return replace(state, known=replace(state.known, templates=()))
    if state.model is not None or not state.known.templates or new.templates == (PHOTO,):
        return state
    return replace(state, known=replace(state.known, templates=new.templates))


def _zero_shot(state: State, pictures: Pictures) -> float | None:
    if not len(pictures.fresh) or not state.known.templates:
        return None
    text = text_form(state.spec, pictures.known, state.frozen, "zero_shot")
    checks = Checks.of(pictures.fresh, pictures.fresh, pictures.known)
    return checks.accuracy(scores(text, pictures.fresh, pictures.pixels))


def update(state: State, new: Dataset, test: Dataset | None, options: Options, progress: Progress) -> Outcome:
    """Make the next version of ``state``, which is not changed.

    Raises:
        UserError: the data do not fit, or no candidate can name the new classes.
        RunError: training fails.
    """
    begin = time.perf_counter()
    guard, pictures, facts, decision, tested = checked(state, new, test, options, progress.aside)
    for line in decision.why:
        progress.say(line)
    trial = _trial(state, pictures, decision, options.seed, progress.aside)
    made: list[Candidate] = []
    for one in candidates(trial, progress):
        right = trial.checks.accuracy(one.scores)
        shown = "     –" if right is None else f"{right:6.1%}"
        progress.say(f"{one.name:13s} {shown} on check images, {one.seconds:.0f} s")
        made.append(one)
    made = guard.allowed(made)
    chosen, reason = choose(made, decision, trial.checks, options.method)
    progress.say(f"chosen: {chosen.name} ({reason})")
    after, told = _next(state, trial, pictures, made, chosen, options)
    after, index = guard.judge(after, pictures, tested)
    result = None if tested is None else compare(state, after, tested, progress.aside)
    gate = gate_of(result, options.max_drop, state)
    if not gate["passed"]:  # there is no version to embed with
        index |= {"rebuilt": None}
        index["words"] = words(index, state.spec)
    names, old = pictures.known.names, len(state.known.names)
    verdict: dict[str, Any] = {
        "schema": 1,
        "from": state.spec,
        "version": after.version,
        "made": after.record["made"],
        "chosen": chosen.name,
        "reason": reason,
        "rule": list(decision.why),
        "facts": vars(facts),
        "candidates": [_row(one, trial.checks, old, chosen) for one in made],
        "checks": {"images": len(pictures.checks), "new": len(pictures.fresh)},
        "images": {"given": len(everything(new)), "learned": len(pictures.new), "held": len(pictures.fresh)},
        "test": result,
        "gate": gate,
        "index": index,
        **told,
        "classes": {
            "old": list(state.known.names),
            "new": list(pictures.known.names[old:]),
            "again": [names[label] for label in pictures.labels if label < old],
        },
        "memory": after.memory,
        "skipped_images": pictures.skipped,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    return Outcome(after, verdict, gate["passed"])


def _trial(
    state: State, pictures: Pictures, decision: rule.Decision, seed: int, watch: Watch = unwatched
) -> Trial:
    """Compute what the candidates need: features of all images, and sums with and without the check images."""
    known, pixels, clip = pictures.known, pictures.pixels, state.frozen
    sums = state.sums.widened(len(known.names))
    parts = (pictures.checks, pictures.new, pictures.older)
    step = watch("features of the frozen model", sum(map(len, parts)))

    def columns(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = features(clip, images, pixels, state.layers, step)
        return rows, torch.from_numpy(images.labels), torch.from_numpy(images.ids)

    checks = columns(pictures.checks)
    for part in (pictures.new, pictures.older):
        sums = sums.plus(*columns(part))
    checked, whole = sums.minus(*checks), sums.plus(*checks)
    lesson = Lesson(known, pictures.new, pictures.exemplars, pixels, seed)
    compared = Checks.of(pictures.checks, pictures.fresh, known)
    return Trial(state, known, lesson, whole, checked, compared, checks[0], pixels, decision)


def choose(
    made: list[Candidate], decision: rule.Decision, checks: Checks, method: str
) -> tuple[Candidate, str]:
    """Return the candidate to keep, and why. Raises UserError where none can name the new classes."""
    possible = [one for one in made if one.eligible]
    if not possible:
        raise UserError(
            "no candidate can recognise all classes: give images of the old ones with --memory (in Python: among those"
            " to learn)"
        )
    by_name = {one.name: one for one in possible}
    if method != AUTO:
        if method not in by_name:
            raise UserError(f"--method {method} cannot be used here: use {' or '.join(by_name)}, or auto")
        return by_name[method], "asked for"
    if not len(checks):
        kept = by_name.get(decision.prefer, possible[0])
        return kept, "preferred; there are no check images to compare on"
    best = max(possible, key=lambda one: checks.accuracy(one.scores) or 0.0)
    prefer = by_name.get(decision.prefer, best)
    ahead, error = checks.better(best.scores, prefer.scores)
    if best is prefer:
        return best, "preferred, and the best on check images"
    if ahead < 1e-9:
        return prefer, "preferred, and none is better on check images"
    points, spread = f"{100 * ahead:.1f}", f"standard error {100 * error:.1f}"
    if ahead > ERRORS * error:
        return best, f"{points} points ahead of {prefer.name} on check images ({spread})"
    return prefer, f"preferred; {best.name} is {points} points ahead, which may be chance ({spread})"


def _next(
    state: State, trial: Trial, pictures: Pictures, made: list[Candidate], chosen: Candidate, options: Options
) -> tuple[State, dict[str, Any]]:
    """Return the state after the update, and what the verdict says of its probabilities and thresholds."""
    checks = trial.checks
    checked = Checked.of(state, chosen.scores, checks.images.labels, chosen.rows)
    model, told = fitted(chosen.build(), checked, state.model)
    clips = [one for one in made if one.clip is not None]
    tuned = max(clips, key=lambda one: checks.accuracy(one.scores) or 0.0).clip if clips else state.tuned
    if chosen.clip is not None:
        tuned = chosen.clip
    exemplars, kept = pictures.kept(options.exemplars, options.seed)
    added = [trial.known.names[label] for label in pictures.labels]
    record = state.next_record(chosen.name, len(pictures.new) + len(pictures.fresh), added)
    own = (state.spec, model, trial.known, state.frozen, tuned, trial.sums)
    return State(*own, exemplars, kept, pictures.domains, None, record), told


def _row(one: Candidate, checks: Checks, old: int, chosen: Candidate) -> dict[str, Any]:
    """Return a candidate's row of the verdict; accuracies are means over classes."""
    labels = checks.images.labels
    return {
        "name": one.name,
        "detail": one.detail,
        "accuracy": checks.accuracy(one.scores),
        "old": checks.accuracy(one.scores, labels < old),
        "new": checks.accuracy(one.scores, labels >= old),
        "seconds": round(one.seconds, 1),
        "eligible": one.eligible,
        "chosen": one is chosen,
    }
