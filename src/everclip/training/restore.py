"""Load a plan's model, fresh or from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from everclip.config import Config
from everclip.config.fields import before
from everclip.config.values import flat
from everclip.data.scenario import Task
from everclip.distributed import collectives
from everclip.errors import UserError, shown
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.states import read_state
from everclip.runs.run import Run
from everclip.seeding import generator
from everclip.system.checkpoint import Place, names
from everclip.system.kinds import COUNT
from everclip.system.reading import Unreadable, read_json, read_toml, readable
from everclip.training import activation_cache, noted
from everclip.training.plan import Plan

log = logging.getLogger("everclip")

STATE, WEIGHTS, RECORD = "state.pt", "weights.safetensors", "record.json"
"""Files of a checkpoint: what is kept besides the model; the weights within a task, perhaps with low-rank updates; and
the test results of a finished task."""
SETTINGS = "settings.json"
"""The file of a checkpoint with what the run's config.toml then said of what is computed."""
_MAY_CHANGE = {
    # folders and files may move: what is in them is compared
    *("data", "source.of", "classnames", "templates"),
    *("device", "distributed", "loader", "cache.ram_mb", "cache.shared", "checkpoint"),
    *("train.accumulate", "train.checkpointing", "train.compile"),
    *("out", "tracker", "trackers", "tuned_on"),
    "defaults",  # a run's config has all values written out
}
"""Keys and sections of a config that do not decide what a run computes: it keeps all others to its end."""
_UNFIT = (
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    FileNotFoundError,
    SafetensorError,
)
"""Errors of a state that is whole and not what it should be."""


class Saved(NamedTuple):
    """A loaded checkpoint."""

    place: Place
    folder: Path
    state: dict[str, Any]


def device(wanted: str) -> str:
    """Return the device of a config: ``auto`` is the GPU if there is one. Raises UserError if it is not available."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each back end has its own
        raise UserError(
            f"device={wanted}, but torch finds no such device: use device=cpu, or device=auto"
        ) from error
    return wanted


def load_model(plan: Plan, spec: str) -> Clip:
    """Load the model ``spec`` at the plan's image size, cut as planned, with its method on the same device."""
    where = device(plan.config.device)
    plan.method.to(where)
    clip = zoo.load(spec, plan.config.image_size, where)
    activation_cache.cut(clip, plan.config, plan.method)
    return clip


def grow(plan: Plan, clip: Clip, task: Task) -> None:
    """Let the plan's method grow for a task, using only that task's random numbers, which a resume can repeat."""
    freeze(plan, clip)
    torch.manual_seed(int(generator(plan.config.seed, "init", task.index).integers(2**63)))
    plan.method.grow(clip, task)


def freeze(plan: Plan, clip: Clip) -> None:
    """Freeze all parameters, as they are outside of a phase, whatever trained last.

    Torch multiplies matrices in another order where a weight takes a gradient, even under ``no_grad``: a resumed run
    would differ in the last bit from one that was not stopped.
    """
    clip.requires_grad_(False)
    plan.method.requires_grad_(False)


def read(run: Run) -> list[Saved]:
    """Read a run's newest intact checkpoint, preceded by those it builds on, and cut the log back to it.

    Without a checkpoint the result and the log are empty: the run starts again.

    Raises:
        RunError: there are checkpoints, but none can be used.
        UserError: one is intact but cannot be read here, or the config has been edited since.
    """
    found = collectives.from_first([[*place] for place in run.store.newest()] if run.writes else None)
    trail = [saved(run.store.folder(place), place) for place in (Place(*numbers) for numbers in found)]
    if trail and SETTINGS in names(trail[-1].folder):
        _check_unedited(run, trail[-1].folder)
    run.cut_log(trail[-1].state["log_bytes"] if trail else 0)
    return trail


def settings(run: Run) -> dict[str, Any]:
    """Return what a run's config.toml says of what is computed, by dotted key. Raises UserError if it is damaged."""
    path = run.path / "config.toml"
    with readable(path, "put back the file that the run began with"):
        known = flat(read_toml(path))
    return {
        key: value
        for key, value in known.items()
        if key not in _MAY_CHANGE and key.partition(".")[0] not in _MAY_CHANGE
    }


def _check_unedited(run: Run, checkpoint: Path) -> None:
    """Refuse a config that was edited after the checkpoint: the results would be of two. Raises UserError."""
    now = settings(run)
    with readable(checkpoint / SETTINGS, "use another copy"):
        then = read_json(checkpoint / SETTINGS)
        if not isinstance(then, dict):
            raise Unreadable("it is no object")
    if "model" not in then:  # an earlier version noted fewer sections
        sections = {key.partition(".")[0] for key in then}
        now = {key: value for key, value in now.items() if key.partition(".")[0] in sections}
    missing = before(Config)  # what a config means that was written before there was a key
    for key in then | now:
        old, new = (known.get(key, missing.get(key, "auto")) for known in (then, now))
        if old != new:
            raise UserError(
                f"{run.path / 'config.toml'} has changed since this run began ({shown(key)}: {shown(old)} then,"
                f" {shown(new)} now): put it back, or start a new run with another out"
            )


def saved(folder: Path, place: Place) -> Saved:
    """Return a checkpoint that was verified. Raises UserError where it cannot be read."""
    wrong = "is intact but cannot be read with these package versions"
    with readable(folder, "install those of its environment.json", wrong):
        parts = [read_state(folder / STATE)]
        parts += [read_json(folder / RECORD)] if RECORD in names(folder) else []
    state = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    missing = {"log_bytes", "method", "record", "skipped"} - set(state)
    if not missing and not COUNT(state["log_bytes"]):
        missing = {"log_bytes"}
    if missing:
        raise UserError(f"{folder} is not a run's checkpoint: it lacks {', '.join(sorted(missing))}")
    return Saved(place, folder, state)


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Turn errors in restoring a checkpoint's state into a one-line UserError."""
    try:
        yield
    except UserError:
        raise
    except _UNFIT as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder} does not fit this run or these package versions ({reason}): continue it with those"
            f" that began it"
        ) from error


def restore(plan: Plan, saved: Saved) -> Clip:
    """Return the model of a checkpoint between two tasks; the plan's method is grown and filled to match."""
    state = saved.state
    if state.get("tasks") != plan.class_names():
        what = "captions" if plan.data.captioned else "classes"
        raise UserError(
            f"{plan.config.data} has other {what} than when this run began: put them back, or start a new run"
        )
    templates = list(plan.prompts.templates)
    if state.get("templates", templates) != templates:  # earlier versions noted none
        raise UserError(
            "the templates are others than when this run began: put them back, or start a new run"
        )
    clip = load_model(plan, f"local-dir:{saved.folder}")
    for task in plan.tasks[: saved.place.task]:
        grow(plan, clip, task)
    with fitting(saved.folder):
        plan.method.load_state_dict(state["method"])
    freeze(plan, clip)
    return clip


def open_run(path: Path) -> tuple[Plan, Clip, int]:
    """Return the plan, the model and the newest finished stage of a run, for use but not for further training.

    Warns if the images have changed since the run began.

    Raises:
        UserError: ``path`` is not a run, or has not finished a task.
    """
    run = Run(path, Run.read_config(path))
    place = run.store.newest_task()
    if place is None and run.finished and not run.store.places():
        raise UserError(
            f"the checkpoints of {path} were removed, as by everclip sweep --drop-checkpoints: train it"
            f" again with everclip train {path / 'config.toml'} out=ANOTHER"
        )
    if place is None:
        raise UserError(f"{path} has finished no task yet: wait, or continue it with everclip resume {path}")
    plan = Plan.of(run.config)
    if different := noted.difference(path, plan):
        log.warning("%s", different)
    return plan, restore(plan, saved(run.store.folder(place), place)), place.task - 1
