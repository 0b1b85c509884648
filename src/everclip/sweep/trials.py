"""Search settings within a number of trials, the same for every method, however many options it has to tune.

A trial is one trained run. The search begins at the config's own values. It goes through the keys in turn and chooses
the best value of each with the others at their current values; if the best value lies at an edge of its grid, the
grid grows by one value beyond it, as long as that improves the result. It repeats while anything changes and trials
are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from everclip.config import Config
from everclip.methods import method_of
from everclip.methods.base.registry import method_class
from everclip.models.tunings import tuning_of
from everclip.runs.words import plain
from everclip.system.text import number_in
from everclip.training.estimate import inner

MOST = 24
"""Default number of trials per method and memory size."""
FACTORS = (0.3, 1.0, 3.0)
"""The initial grid of a rate: the config's own times these factors. Grids grow while an edge is best."""

Values = dict[str, str]
Grid = dict[str, list[str]]
Score = Callable[[Values], float | None]
"""Trains with some settings and returns the accuracy in 0..1; None if the loss was not finite."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search within a number of trials.

    Args:
        values: the best value of each key.
        tried: for each key, value -> the best score of a trial that had it; None where none was finite.
        trials: runs that were trained, of at most ``most``.
        edges: keys whose winner still lies at an edge of its grid that could grow, for want of trials.
    """

    values: Values
    tried: dict[str, dict[str, float | None]]
    trials: int
    most: int
    edges: list[str]


def space(config: Config, fixed: Collection[str] = ()) -> Grid:
    """Return what there is to tune in a config: rates, length, and the constants that its method's ``Config`` names.

    Args:
        fixed: keys that are not searched, as the user has set them.
    """
    found: Grid = {}
    method = method_class(config.method.name).Config
    if method_of(config).capabilities.trains:
        found |= _rates(config)
        found |= _length(config) if not {"train.epochs", "train.steps"} & {*fixed} else {}
    for name, values in method.search.items():
        words = [plain(value) for value in values]
        own = plain(config.method.options.get(name))
        found[f"method.{name}"] = words if own in words else _ordered([*words, own])
    return {key: values for key, values in found.items() if key not in fixed}


def has_head(config: Config) -> bool:
    """Return whether the config's method trains a new head on the features, or others that learn at its rate."""
    name, options = inner(config)
    if (own := own_rates(config)) is not None:
        return "lr_head" in own
    fields = method_class(name).Config.model_fields
    head = fields["head"].default if "head" in fields else "linear"
    return "head_init" in fields and options.get("head", head) == "linear"


def own_rates(config: Config) -> tuple[str, ...] | None:
    """Return the rates that the config's method says it has parameters for; None where it says nothing."""
    return method_class(inner(config)[0]).Config.rates


def _rates(config: Config) -> Grid:
    """Return the rates of what trains."""
    own = own_rates(config)
    tuned = [r for r in tuning_of(config.tune, config.tuning.options).rates if own is None or r in own]
    rates: dict[str, float | None] = {}
    if "lr" in tuned:
        rates["train.lr"] = config.train.lr
    name, options = inner(config)
    reads_text = own is not None or (
        method_class(name).passes.text != "none" and options.get("head") != "linear"
    )
    if "lr_text" in tuned and reads_text:
        rates["train.lr_text"] = config.train.lr_text
    if has_head(config):
        rates["train.lr_head"] = config.train.lr_head
    grid = {key: [f"{rate * factor:.3g}" for factor in FACTORS] for key, rate in rates.items() if rate}
    if "train.lr_text" in grid and "train.lr" in grid:
        grid["train.lr_text"].insert(0, "0")
    return grid


def _length(config: Config) -> Grid:
    key = "steps" if config.train.steps is not None else "epochs"
    own = config.train.steps or config.train.epochs or 1
    return {f"train.{key}": [str(count) for count in sorted({max(1, own // 2), own, 2 * own})]}


def _ordered(words: list[str]) -> list[str]:
    """Return numbers by size, behind what is none."""
    return sorted(words, key=lambda text: -1.0 if (value := number_in(text)) is None else value)


def start(config: Config, grid: Mapping[str, list[str]]) -> Values:
    """Return the config's own value of each key as its grid writes it; the first where the grid has it not."""
    found: Values = {}
    for key, values in grid.items():
        section, _, name = key.rpartition(".")
        own: Any = config.method.options.get(name) if section == "method" else None
        if section == "train":
            own = getattr(config.train, name, None)
        elif key == "center":
            own = config.center
        text = plain(own)
        size = number_in(text)
        same = [value for value in values if value == text or (size is not None and _close(value, size))]
        found[key] = same[0] if same else values[0]
    return found


def _close(text: str, size: float) -> bool:
    value = number_in(text)
    return value is not None and abs(value - size) <= 5e-3 * abs(size)


def beyond(values: list[str], winner: str) -> str | None:
    """Return the next value outside of a grid whose winner lies at an edge: as far from it as its neighbour on the
    other side, by ratio. None where it lies inside, or the grid is not of numbers above 0 at that end.
    """
    numbers = [number_in(value) for value in values]
    if len(values) < 2 or winner not in (values[0], values[-1]):
        return None
    edge, inside = (-1, -2) if winner == values[-1] else (0, 1)
    first, second = numbers[edge], numbers[inside]
    if first is None or second is None or first <= 0 or second <= 0:
        return None
    further = first * first / second
    whole = all(value.isdecimal() for value in values)
    text = str(max(1, round(further))) if whole else f"{further:.3g}"
    return None if text in values else text


def search(grid: Grid, own: Values, score: Score, most: int, valid: Callable[[str, str], bool]) -> Outcome:
    """Return the best values within ``most`` trials, each of them better than what was there before it.

    Args:
        grid: key -> values in order; keys are gone through in theirs.
        own: where the search begins.
        score: trains; equal values may be asked for again, which is no other trial.
        valid: whether a grid may grow by a value.
    """
    grid = {key: list(values) for key, values in grid.items()}
    known: dict[tuple[str, ...], float | None] = {}
    best, top = dict(own), None

    def improve(key: str, values: list[str]) -> bool:
        nonlocal best, top
        before = best
        for value in values:
            trial = best | {key: value}
            same = tuple(trial.values())
            if same not in known:
                if len(known) >= most:
                    continue
                known[same] = score(trial)
            result = known[same]
            if result is not None and (top is None or result > top):
                best, top = trial, result
        return best is not before

    def grow(key: str) -> str | None:
        further = beyond(grid[key], best[key])
        return further if further is not None and valid(key, further) else None

    changed = bool(grid)
    while changed and len(known) < most:
        changed = False
        for key in grid:
            changed = improve(key, [best[key], *grid[key]]) or changed
        for key in grid:
            while len(known) < most and (further := grow(key)) is not None:
                grid[key].insert(0 if best[key] == grid[key][0] else len(grid[key]), further)
                if not improve(key, [further]):
                    break
                changed = True
    tried: dict[str, dict[str, float | None]] = {key: {} for key in grid}
    for same, result in known.items():
        for key, value in zip(own, same, strict=True):
            before = tried[key].get(value)
            tried[key][value] = (
                before if result is None or (before is not None and before > result) else result
            )
    ordered = {key: {v: tried[key][v] for v in values if v in tried[key]} for key, values in grid.items()}
    edges = [key for key in grid if grow(key) is not None]
    return Outcome(best, ordered, len(known), most, edges)
