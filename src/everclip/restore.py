"""A plan's model: fresh, or as a checkpoint left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from everclip.data.scenario import Task
from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.plan import Plan
from everclip.run import Run
from everclip.seeding import generator


def device(wanted: str) -> str:
    """The device of a config: ``auto`` is the GPU where there is one. Raises UserError where it is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each back end has its own
        raise UserError(
            f"device={wanted} but torch finds no such device: write device=cpu, or device=auto"
        ) from error
    return wanted


def load_model(plan: Plan, spec: str) -> Clip:
    """The model ``spec`` at the plan's image size, with the plan's method on the same device."""
    where = device(plan.config.device)
    plan.method.to(where)
    return zoo.load(spec, plan.config.image_size, where)


def grow(plan: Plan, clip: Clip, task: Task) -> None:
    """Let the plan's method grow for a task, with the random numbers of that task alone: a resume has no others."""
    freeze(plan, clip)
    torch.manual_seed(int(generator(plan.config.seed, "init", task.index).integers(2**63)))
    plan.method.grow(clip, task)


def freeze(plan: Plan, clip: Clip) -> None:
    """Outside of a phase nothing takes a gradient, whatever trained last.

    Torch multiplies matrices in another order where a weight takes a gradient, even under ``no_grad``: a resumed run
    would differ in the last bit from one that was not stopped.
    """
    clip.requires_grad_(False)
    plan.method.requires_grad_(False)


def restore(plan: Plan, folder: Path, state: dict[str, Any]) -> Clip:
    """The model of a checkpoint; the plan's method is grown and filled to match."""
    if state["tasks"] != plan.class_names():
        raise UserError(
            f"{plan.config.data} has other classes than when this run began: put them back, or start a new run"
        )
    clip = load_model(plan, f"local-dir:{folder}")
    for task in plan.tasks[: state["stage"] + 1]:
        grow(plan, clip, task)
    plan.method.load_state_dict(state["method"])
    freeze(plan, clip)
    return clip


def open_run(path: Path) -> tuple[Plan, Clip, int]:
    """The plan, the model and the newest finished stage of a run, for use (not for training on).

    Raises:
        UserError: ``path`` is no run, or has not finished a task.
    """
    run = Run(path, Run.read_config(path))
    folders = run.checkpoints()
    if not folders:
        raise UserError(
            f"{path} has finished no task yet: wait for one, or continue it with everclip resume {path}"
        )
    state = torch.load(folders[-1] / "state.pt", weights_only=True)
    plan = Plan.of(run.config)
    return plan, restore(plan, folders[-1], state), state["stage"]
