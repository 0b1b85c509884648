"""Compare runs with published accuracies of the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.config.sources import read_toml
from everclip.errors import UserError, suggest

FILE = Path(__file__).parents[1] / "assets" / "published.toml"
FREE = ("data", "device", "out", "loader.", "cache.", "train.precision", "checkpoint.")
"""Prefixes of keys that may differ from the published settings: they change where and how fast it runs."""


@dataclass(frozen=True)
class Published:
    """Published numbers and their settings."""

    name: str  # the argument of ``everclip reproduce``
    config: str  # name of a shipped config
    settings: Mapping[str, Any]  # model, prompts and method, in place of the config's
    published: Mapping[str, float]  # ``last`` or ``average`` in %
    tolerance: float  # accepted difference in points
    source: str  # where the numbers were published
    url: str


@dataclass(frozen=True)
class Check:
    """A published number beside ours, both in %."""

    metric: str
    published: float
    here: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether ours lies within the tolerance, above or below."""
        return abs(self.here - self.published) <= self.tolerance


def every() -> dict[str, Published]:
    """Return all published numbers, by name."""
    return {name: Published(name, **entry) for name, entry in read_toml(FILE).items()}


def named(name: str) -> Published:
    """Return the published numbers of a name. Raises UserError for an unknown name."""
    known = every()
    if name not in known:
        raise UserError(
            f'no published numbers are called "{name}"{suggest(name, known)}; everclip reproduce lists all'
        )
    return known[name]


def settings_of(entry: Published, changed: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a run to compare with published numbers.

    Raises:
        UserError: a key of ``changed`` would make it another experiment.
    """
    for key in changed:
        if not key.startswith(FREE):
            raise UserError(
                f"{key} belongs to what {entry.name} reproduces: leave it out, or use everclip train {entry.config}"
                f" {key}=..."
            )
    return {**entry.settings, "out": f"runs/reproduce/{entry.name}", **changed}


def checks(entry: Published, results: Mapping[str, Any]) -> list[Check]:
    """Return each published number beside that of a run."""
    return [
        Check(metric, value, 100 * results[metric], entry.tolerance)
        for metric, value in entry.published.items()
    ]
