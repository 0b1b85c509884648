"""Decide whether a run measures the frozen features, by counting passes instead of timing them, so that machines
agree."""

from __future__ import annotations

from everclip import methods
from everclip.config import Config
from everclip.data import scenarios
from everclip.training import estimate
from everclip.training.estimate import Sizes, Work

MOST = 0.2
"""Largest fraction of the planned passes that a pass over the training images may be under ``references=auto``."""


def share(config: Config, sizes: Sizes) -> float:
    """Return one pass over the training images as a fraction of the image tower's passes that a resolved config plans.

    An image that is trained on counts as three passes.
    """
    planned = estimate.work(config, sizes)
    return sum(sizes.train) / max(1.0, 3 * planned.trained + planned.forward)


def wanted(config: Config, sizes: Sizes) -> bool:
    """Return whether a resolved config measures the frozen features.

    With ``references=auto`` tuning runs do not, as their results only serve to choose settings. Where all tasks are
    tested after each, no run does: the frozen features know no future classes. Nor does a run on captions, which are no
    classes that linear algebra could tell apart.
    """
    if sizes.captions or scenarios.build(config.scenario).task_id is not None:
        return False
    if config.references != "auto":
        return config.references == "all"
    return (
        methods.method_of(config).capabilities.trains
        and config.scenario.validation is None
        and share(config, sizes) <= MOST
    )


def work(config: Config, sizes: Sizes) -> Work:
    """Count what measuring the frozen features computes."""
    again = sum(sizes.test) if config.center else 0  # else zero-shot has computed their features
    plain = sum(sizes.train) if config.cache.views > 1 else 0  # else training keeps the same rows
    return Work(forward=sum(sizes.train) + again, once=plain) if wanted(config, sizes) else Work()


def words(config: Config, sizes: Sizes) -> str:
    """Name in a line what a resolved config compares itself with."""
    if sizes.captions:
        return "references: zero-shot"
    asked = (
        "references: zero-shot"
        if sizes.templates
        else "references: no zero-shot, as there are no text features"
    )
    if wanted(config, sizes):
        return f"{asked}; frozen features, one pass over {sum(sizes.train):,} training images"
    if (
        config.references == "none"
        or not methods.method_of(config).capabilities.trains
        or config.scenario.validation is not None
    ):
        return asked
    passes = f"one pass over the training images is {share(config, sizes):.0%} of the passes planned"
    return f"{asked}; frozen features only with references=all, as {passes}"
