"""Detect errors before anything runs: data, model, device, and methods that refuse the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from everclip import methods
from everclip.config import Config
from everclip.errors import UserError
from everclip.methods.base.method import Method
from everclip.training import fork, restore
from everclip.training.plan import Plan, check_names


def plans(configs: Sequence[Config]) -> dict[str, Plan]:
    """Return a plan for each distinct setting of data and tasks, by ``setting``.

    Raises:
        UserError: with every complaint.
    """
    found: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    for config in configs:
        key = setting(config)
        if key in found or key in refused:
            continue
        try:
            found[key] = Plan.of(config)
        except UserError as error:
            refused[key] = str(error)
    for config in {repr([config.model, config.trackers]): config for config in configs}.values():
        try:
            check_names(config)
        except UserError as error:
            refused[str(error)] = str(error)
    _raise(refused.values())
    return found


def forks(configs: Sequence[Config]) -> None:
    """Find the checkpoint of each config that is forked from another run.

    Raises:
        UserError: with every complaint.
    """
    refused: list[str] = []
    for config in configs:
        if config.fork is not None:
            try:
                fork.source(config)
            except UserError as error:
                refused.append(str(error))
    _raise(refused)


def setting(config: Config) -> str:
    """Return the part of a config that decides its data and tasks, as a key."""
    names = ("data", "model", "classnames", "templates", "scenario", "smoke")
    return repr([getattr(config, name) for name in names])


def models(configs: Sequence[Config], plans: dict[str, Plan]) -> None:
    """Load each model once, and let each method that adds to it do so once; what is forked, from its checkpoint.

    Raises:
        UserError: with every complaint: no such model or device, a method that the model does not suit, or a checkpoint
            that does not fit.
    """
    refused: list[str] = []
    seen: set[str] = set()
    for config in configs:
        plan = plans[setting(config)]
        here = replace(
            plan,
            config=config.model_copy(update={"device": "cpu"}),
            method=methods.build(config, plan.prompts),
        )
        grows = type(here.method).grow is not Method.grow
        forked = [config.fork, config.seed] if config.fork else None
        key = repr(
            [config.device, config.model, config.image_size, (grows or forked) and config.method, forked]
        )
        if key in seen:
            continue
        seen.add(key)
        try:
            restore.device(config.device)
            if forked:
                fork.check(here)
            else:
                restore.grow(here, restore.load_model(here, config.model), plan.tasks[0])
        except UserError as error:
            refused.append(str(error))
    _raise(refused)


def _raise(refused: Iterable[str]) -> None:
    different = list(dict.fromkeys(refused))
    if different:
        raise UserError("; ".join(different))
