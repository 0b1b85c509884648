"""Take one training step: features, loss, update, and its line in the log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from typing import Any, cast, get_args

from torch import Tensor

from everclip.data.loader import Batch, Phase
from everclip.data.scenario import Task
from everclip.distributed import collectives
from everclip.errors import NonFinite, UserError
from everclip.methods.base.method import Method, to_device
from everclip.models import precision
from everclip.models.precision import Precision
from everclip.plugins import returned
from everclip.training.context import Context
from everclip.training.nonfinite import IN_A_ROW, check, located, undoable
from everclip.training.optim import Update

LINES_A_STAGE = 20
"""Approximate number of lines of class weights and class losses in the log per stage."""


def step(context: Context, update: Update, batch: Batch, phase: Phase, task: Task) -> None:
    """Train on one batch.

    Raises:
        NonFinite: features, loss or gradient are not finite, and nothing has changed; with ``train.nonfinite=skip``
        this is logged instead, up to ten times in a row.
    """
    skipping = context.plan.config.train.nonfinite == "skip"
    learner = context.method.learner(task)  # whose loss it is; need not be part of the method
    state: AbstractContextManager[Callable[[], None] | None] = (
        undoable(learner) if skipping else nullcontext()
    )
    batch = to_device(batch, context.clip.device)
    with state as undo, update.answered():
        try:
            losses, numbers = _train(context, update, batch, phase, task)
        except NonFinite as error:
            if undo is None:
                raise
            undo()
            _skip(context, update, batch, phase, task, error)
            return
    learner.after_step(context.clip)
    context.record.step(len(batch))
    context.journal.log(
        "step",
        **_place(context, update, batch, phase, task),
        loss=losses,
        **numbers,
        images_per_second=round(context.record.images_per_second(), 1),
        diagnostics=learner.diagnostics(),
    )
    if (update.done - 1) % max(1, update.steps // LINES_A_STAGE) == 0:
        _log_classes(context, task)
    context.progress.step(f"loss {sum(losses.values()):.4f}")


def _train(
    context: Context, update: Update, batch: Batch, phase: Phase, task: Task
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the terms of the loss and the update's numbers. Raises NonFinite before anything learns from them."""
    learner, clip, kind = context.method.learner(task), context.clip, _precision(context, update)
    where = f"at step {update.done + 1} of {task.name}"
    ids = batch.ids.tolist()
    # open for the backward pass too, which computes pieces and blocks again
    with precision.attention(clip, kind), update.passes.open(batch):
        with precision.autocast(clip, kind):
            features = _returned(learner, "encode", learner.encode(clip, batch, phase))
        check(features, located(where, ids), update.advice)
        terms = _returned(learner, "loss", learner.loss(features, batch, phase), scalar=True)
        terms = terms | _returned(learner, "penalty", learner.penalty(clip), scalar=True)
        return update.step(terms, where, ids)


def _returned(method: Method, hook: str, found: Any, scalar: bool = False) -> dict[str, Tensor]:
    """Return a hook's named tensors. Raises UserError for anything else, which would fail far from the hook."""
    wrong = None if isinstance(found, dict) else f"{found!r:.80}"
    for name, value in found.items() if isinstance(found, dict) else ():
        if not isinstance(value, Tensor):
            wrong = f'"{name}": {value!r:.80}'
        elif scalar and value.ndim:
            wrong = f'"{name}" of shape {tuple(value.shape)}'
    if wrong is not None:
        raise UserError(
            f"{returned(method, hook)} {wrong}:"
            f" return a dict of names and {'scalar ' if scalar else ''}tensors"
        )
    return found


def _precision(context: Context, update: Update) -> Precision:
    """Return the precision that the towers train in: as configured, or as it was found at the run's first step."""
    wanted, record = context.plan.config.train.precision, context.record
    if wanted != "auto":
        return wanted
    if record.precision is None:
        device = context.clip.device
        with update.whole():
            fastest = precision.choose(context.clip, device)
        choice = precision.Choice(*collectives.from_first([*astuple(fastest)]))
        record.precision = choice.precision
        context.journal.log(
            "precision",
            chosen=choice.precision,
            seconds={kind: getattr(choice, kind) for kind in get_args(Precision)},
        )
        context.progress.say(f"train.precision=auto: {choice.precision}{choice.words()}")
    return cast("Precision", record.precision)


def _place(context: Context, update: Update, batch: Batch, phase: Phase, task: Task) -> dict[str, int | str]:
    return {
        "stage": task.index,
        "phase": phase.name,
        "epoch": batch.key[2],
        "step": update.done - 1,
        "global_step": context.record.optimizer_steps - 1,
    }


def _skip(context: Context, update: Update, batch: Batch, phase: Phase, task: Task, error: NonFinite) -> None:
    """Skip a step: only the schedule advances. Raises NonFinite after too many in a row."""
    update.skip()
    context.record.skip()
    place = _place(context, update, batch, phase, task)
    context.journal.log("skipped", **place, reason=str(error), ids=batch.ids.tolist())
    if context.record.skipped_in_a_row >= IN_A_ROW:
        raise NonFinite(f"{IN_A_ROW} steps in a row were skipped; the last one: {error}")
    context.progress.step("left out")


def _log_classes(context: Context, task: Task) -> None:
    """Log a line of class weights and one of class losses, if the method has any."""
    learner = context.method.learner(task)
    where = {"stage": task.index, "global_step": context.record.optimizer_steps - 1}
    for event, name, values in (
        ("class_weights", "weights", learner.class_weights()),
        ("class_losses", "losses", learner.class_losses()),
    ):
        if values:
            named = {context.plan.prompts.names[label]: value for label, value in values.items()}
            context.journal.log(event, **where, **{name: named})
