"""Detect errors before anything runs: data, model, device, and methods that refuse the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from everclip import data, methods
from everclip.config import Config, load_config
from everclip.errors import UserError
from everclip.methods.base.method import Method
from everclip.runs.resolve import resolve
from everclip.training import fork, restore
from everclip.training.plan import Plan, check, check_names

log = logging.getLogger("everclip")


@contextmanager
def complaints(prefix: str = "") -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield ``noted``, whose blocks may raise UserError; raise all different errors as one at the end."""
    found: dict[str, None] = {}

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            found[str(error)] = None

    yield noted
    if found:
        raise UserError(prefix + "; ".join(found))


def values(
    words: Sequence[str],
    grid: Mapping[str, Sequence[str]],
    noted: Callable[[], AbstractContextManager[None]],
) -> None:
    """Resolve the config of ``words`` with each value of each key in turn, in the ``noted`` of ``complaints``."""
    for key, listed in grid.items():
        for value in listed:
            with noted():
                resolve(load_config([*words, f"{key}={value}"]))


@contextmanager
def once(said: set[str]) -> Iterator[None]:
    """Let each warning through once, noting it in ``said``: many cells give the same ones."""

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in said
        said.add(text)
        return new

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def plans(configs: Sequence[Config]) -> dict[str, Plan]:
    """Return a plan per distinct ``setting`` of data and tasks, and check that every config has one.

    Raises:
        UserError: with every complaint.
    """
    found: dict[str, Plan] = {}
    groups: dict[str, dict[str, Config]] = {}  # configs with the same data, which are read once
    for config in configs:
        groups.setdefault(source(config), {}).setdefault(planned(config), config)
    with complaints() as noted:
        for group in groups.values():
            with noted():
                images = data.of(next(iter(group.values())))
                for config in group.values():
                    with noted():
                        plan = Plan.of(config, images)
                        check(plan)
                        found.setdefault(setting(config), plan)
        for config in {repr([config.model, config.trackers]): config for config in configs}.values():
            with noted():
                check_names(config)
    return found


def forks(configs: Sequence[Config]) -> None:
    """Find the checkpoint that each config is forked from, if any. Raises UserError with every complaint."""
    with complaints() as noted:
        for config in configs:
            with noted():
                if config.fork is not None:
                    fork.source(config)


def source(config: Config) -> str:
    """Return as a key the part of a config that decides its data, and how they become tasks."""
    names = ("data", "source", "model", "classnames", "templates", "scenario", "smoke")
    return repr([getattr(config, name) for name in names])


def setting(config: Config) -> str:
    """Return as a key the part of a config that decides its data and tasks."""
    return repr([source(config), config.seed if config.scenario.order == "seed" else None])


def planned(config: Config) -> str:
    """Return as a key the part of a config that decides its plan, and whether it has one.

    A scenario of the user's own that refuses something else is left to the run itself.
    """
    train = config.train
    lengths = [train.epochs, train.steps, train.captions, train.augment]
    return repr([setting(config), config.method, config.memory, config.defaults, lengths])


def models(configs: Sequence[Config], plans: dict[str, Plan]) -> None:
    """Load each model once, let each method that adds to it do so once, and check each fork's checkpoint.

    Raises:
        UserError: with every complaint: an unknown model or device, a method that the model does not suit, or a
            checkpoint that does not fit.
    """
    distinct: dict[str, Plan] = {}
    for config in configs:
        plan = plans[setting(config)]
        method = methods.build(config, plan.prompts)
        adds = type(method).grow is not Method.grow or config.fork
        forked = [config.fork, config.seed] if config.fork else None
        key = repr([config.device, config.model, config.image_size, adds and config.method, forked])
        distinct.setdefault(key, replace(plan, config=config, method=method))
    with complaints() as noted:
        for plan in distinct.values():
            here = replace(plan, config=plan.config.model_copy(update={"device": "cpu"}))
            with noted():
                restore.device(plan.config.device)
                if here.config.fork:
                    fork.check(here)
                else:
                    restore.grow(here, restore.load_model(here, here.config.model), here.tasks[0])
