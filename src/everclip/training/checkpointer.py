"""Save and restore training progress: between two tasks, between two phases, after any step.

What a method makes when a task or a phase begins (teachers, class counts, label sets) is not part of its state. A run
that resumes in the middle of a task makes it again from the same models: the one before the task, then the one at the
start of each phase. Only then are the weights, the state and the optimizer restored as they were when it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from everclip.distributed import collectives
from everclip.models.savable import savable, save_state
from everclip.runs import card as cards
from everclip.runs.run import Run
from everclip.system.checkpoint import Place, amend
from everclip.system.signals import Stop
from everclip.training.context import Context, Journal
from everclip.training.optim import Update
from everclip.training.plan import card_of
from everclip.training.restore import RECORD, SETTINGS, STATE, WEIGHTS, Saved, fitting, settings


class Checkpointer(Journal):
    """Log and save a run, and restore it to where it stopped.

    Args:
        trail: the checkpoint to continue from, preceded by those it builds on; empty for a new run.

    Attributes:
        place: how far the run is saved.
    """

    def __init__(self, run: Run, context: Context, stop: Stop, trail: Sequence[Saved]) -> None:
        self.run = run
        self.context = context
        self.stop = stop
        self.place = trail[-1].place if trail else Place(0)
        self._settings = settings(run) if run.writes else {}
        self._trail = {saved.place: saved for saved in trail[1:]}
        self._target = self.place if self._trail else None
        self._on = [saved.place for saved in trail if not saved.place.step]
        self._moved = bool(self._trail)
        self._kind, _, number = run.config.checkpoint.every.partition(":")
        self._number = int(number or 0)
        self._steps, self._saved_at = 0, time.monotonic()

    def log(self, event: str, **values: Any) -> None:
        """Write a line of metrics.jsonl."""
        self.run.log(event, **values)

    def finish(self, stage: int) -> None:
        """Save the run after task ``stage``, -1 before the first: the model as a ``local-dir:``, and what is kept."""
        context = self.context
        plan = context.plan
        state = self._state() | {"memory": context.memory.state_dict(), "tasks": plan.class_names()}
        state["templates"] = list(plan.prompts.templates)

        def model(folder: Path) -> None:
            context.clip.save(folder)
            if stage >= 0:  # by which the model is used without its training images
                cards.write(folder, card_of(plan, stage + 1))

        self._commit(Place(stage + 1), model, state)
        self._on, self._moved = [self.place], False

    def scored(self) -> None:
        """Add the results of its test to the checkpoint of the finished task."""
        content = self._noted()
        if self.run.writes:
            amend(self.run.store.folder(self.place), {RECORD: json.dumps(content).encode()})

    def enter(self, phase: int) -> None:
        """Begin a phase: save its start, or restore it if the run stopped later."""
        start = Place(self.place.task, phase)
        if start in self._trail:
            self._bring_back(self._trail.pop(start))
        elif self._moved and self._target is None:
            self._save(start, None)
        if self._target is None:
            self._stop_for(*collectives.most(self.stop.requested or 0))

    def resume(self, update: Update, phase: int, steps: int) -> int:
        """Return how many batches of a phase that has begun are done already; the update continues after them."""
        target = self._target
        if target is None or phase < target.phase:
            return steps if target else 0
        if target.step:
            self._bring_back(self._trail.pop(target), update)
        self._target = None
        return target.step

    def step(self, update: Update, phase: int, done: int) -> None:
        """Note a step (``done`` batches of the phase in all): save when due, stop when asked.

        Raises:
            Stopped: a signal has come; the run is saved.
        """
        self._moved = True
        self._steps += 1
        minutes = (time.monotonic() - self._saved_at) / 60
        due = {"task": False, "steps": self._steps >= self._number, "minutes": minutes >= self._number}
        save, signal = collectives.most(due[self._kind], self.stop.requested or 0)
        if save or signal:
            self._save(Place(self.place.task, phase, done), update)
        self._stop_for(signal)

    # ----------------------------------------------------------------------------------------------------------------

    def _stop_for(self, signal: int) -> None:
        """Raise Stopped for a signal that this process or another has received."""
        if signal:
            if not self.stop.requested:
                self.stop.ask(signal)
            self.stop.check()

    def _noted(self) -> dict[str, Any]:
        context = self.context
        return {
            "log_bytes": self.run.log_bytes(),
            "record": context.record.state_dict(),
            "skipped": context.loader.pixels.skipped(),
        }

    def _state(self) -> dict[str, Any]:
        return self._noted() | {"method": self.context.method.state_dict()}

    def _save(self, place: Place, update: Update | None) -> None:
        """Save a place within a task."""
        clip = self.context.clip
        device, random = clip.device, {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        state = self._state() | {"random": random, "update": update and update.state_dict()}
        with nullcontext() if update is None else update.whole():
            self._commit(
                place, lambda folder: save_file(savable(clip.model.state_dict()), folder / WEIGHTS), state
            )
        if not place.step:
            self._on.append(place)

    def _commit(self, place: Place, model: Callable[[Path], object], state: dict[str, Any]) -> None:
        def write(folder: Path) -> None:
            model(folder)
            save_state(state, folder / STATE)
            (folder / SETTINGS).write_text(json.dumps(self._settings), encoding="utf-8")

        if self.run.writes:
            self.run.store.commit(place, write, [] if place.whole else self._on)
        collectives.wait()  # the others must not go on without it
        self.place = place
        self._steps, self._saved_at = 0, time.monotonic()

    def _bring_back(self, saved: Saved, update: Update | None = None) -> None:
        """Restore weights, state and random numbers of a place within the task."""
        context, state = self.context, saved.state
        with fitting(saved.folder):
            with nullcontext() if update is None else update.whole():
                context.clip.model.load_state_dict(load_file(saved.folder / WEIGHTS))
            context.method.load_state_dict(state["method"])
            context.record.load_state_dict(state["record"])
            context.loader.pixels.mark_broken(state["skipped"])
            torch.set_rng_state(state["random"]["cpu"])
            device = context.clip.device
            if "cuda" in state["random"] and device.type == "cuda":
                torch.cuda.set_rng_state(state["random"]["cuda"], device)
            if update is not None:
                update.load_state_dict(state["update"])
