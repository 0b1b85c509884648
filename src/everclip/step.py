"""One training step: features, loss, update, and its line in the log."""

from __future__ import annotations

import torch

from everclip.data.loader import Batch, Phase
from everclip.data.scenario import Task
from everclip.lab import Lab
from everclip.methods._base import to_device
from everclip.optim import Update

LINES_A_STAGE = 20
"""Lines of class weights and class losses in the log per stage, about."""


def step(lab: Lab, update: Update, batch: Batch, phase: Phase, task: Task) -> None:
    """Train on one batch."""
    method, clip, record = lab.method, lab.clip, lab.record
    batch = to_device(batch, clip.device)
    with torch.autocast(clip.device.type, torch.bfloat16, enabled=lab.run.config.train.precision == "bf16"):
        features = method.encode(clip, batch, phase)
    terms = method.loss(features, batch, phase) | method.penalty(clip)
    where = f"at step {update.done + 1} of {task.name}"
    numbers = update.step(terms, where, batch.ids.tolist())
    method.after_step(clip)
    record.step(len(batch))
    losses = {name: term.item() for name, term in terms.items()}
    lab.run.log(
        "step",
        stage=task.index,
        phase=phase.name,
        epoch=batch.key[2],
        step=update.done - 1,
        global_step=record.optimizer_steps - 1,
        loss=losses,
        **numbers,
        images_per_second=round(record.images_per_second(), 1),
        diagnostics=method.diagnostics(),
    )
    if (update.done - 1) % max(1, update.steps // LINES_A_STAGE) == 0:
        _log_classes(lab, task)
    lab.progress.step(f"loss {sum(losses.values()):.4f}")


def _log_classes(lab: Lab, task: Task) -> None:
    """A line of class weights and one of class losses, where the method has any."""
    where = {"stage": task.index, "global_step": lab.record.optimizer_steps - 1}
    for event, name, values in (
        ("class_weights", "weights", lab.method.class_weights()),
        ("class_losses", "losses", lab.method.class_losses()),
    ):
        if values:
            named = {lab.plan.prompts.names[label]: value for label, value in values.items()}
            lab.run.log(event, **where, **{name: named})
