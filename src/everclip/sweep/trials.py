"""Search settings within a number of trials, the same for every method, however many options it has to tune.

A trial is one trained run. The search starts from the config's own values. Key by key, it chooses the best value
with the others at their current values. Where the best value lies at an edge of its grid, the grid grows beyond it as
long as the result improves: those of rates and epochs (to four times the config's own) at once, those of the method's
own constants after each key has been tried. It repeats while anything changes and trials are left.
"""

from __future__ import annotations

import math
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
"""The initial grid of a rate: the config's own times these factors."""

Values = dict[str, str]
Grid = dict[str, list[str]]
Score = Callable[[Values], float | None]
"""Train with some settings and return the accuracy in 0..1; None if the loss was not finite."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search within a number of trials."""

    values: Values  # the best value of each key
    # for each key, value -> the best score of a trial that had it; None where none was finite
    tried: dict[str, dict[str, float | None]]
    trials: int  # number of trained runs
    edges: list[str]  # keys whose best value lies at an edge of a grid that could grow with more trials


def space(config: Config, fixed: Collection[str] = ()) -> Grid:
    """Return what can be tuned in a config: rates, length, and the constants that its method's ``Config`` names.

    Args:
        fixed: keys to leave out, since the user has set them.
    """
    method = method_class(config.method.name).Config
    constants: Grid = {}
    for name, values in method.search.items():
        words = [plain(value) for value in values]
        own = plain(config.method.options.get(name))
        constants[f"method.{name}"] = words if own in words else sorted([*words, own], key=_size)
    found = {key: constants[key] for key in (f"method.{name}" for name in method.search_first)}
    if method_of(config).capabilities.trains:
        # The best rate depends on the length more than the length on the rate: longer runs need smaller ones.
        found |= _length(config) if not {"train.epochs", "train.steps"} & {*fixed} else {}
        found |= _rates(config)
    found |= constants
    return {key: values for key, values in found.items() if key not in fixed}


def has_head(config: Config) -> bool:
    """Return whether the config's method trains a new head, or other parameters at the rate of a head."""
    name, options = inner(config)
    if (own := own_rates(config)) is not None:
        return "lr_head" in own
    fields = method_class(name).Config.model_fields
    head = fields["head"].default if "head" in fields else "linear"
    return "head_init" in fields and options.get("head", head) == "linear"


def own_rates(config: Config) -> tuple[str, ...] | None:
    """Return the rates that the config's method declares; None where it declares none."""
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
    return {key: [f"{rate * factor:.3g}" for factor in FACTORS] for key, rate in rates.items() if rate}


def _length(config: Config) -> Grid:
    key = "steps" if config.train.steps is not None else "epochs"
    own = config.train.steps or config.train.epochs or 1
    return {f"train.{key}": [str(count) for count in sorted({max(1, own // 2), own, 2 * own})]}


def _size(text: str) -> float:
    """Return a sort key: numbers by size, after other texts."""
    value = number_in(text)
    return -1.0 if value is None else value


def start(config: Config, grid: Mapping[str, list[str]]) -> Values:
    """Return the config's own value of each key as its grid has it; the first value where the grid lacks it."""
    found: Values = {}
    for key, values in grid.items():
        section, _, name = key.rpartition(".")
        own: Any = config.method.options.get(name) if section == "method" else None
        if section == "train":
            own = getattr(config.train, name, None)
        elif key == "center":
            own = config.center
        found[key] = next((value for value in values if _same(value, plain(own))), values[0])
    return found


def _same(text: str, own: str) -> bool:
    """Return whether a value of a grid is ``own``, which the grid may have rounded."""
    value, exact = number_in(text), number_in(own)
    if value is None or exact is None:
        return text == own
    return math.isclose(value, exact, rel_tol=5e-3)


def beyond(values: list[str], winner: str) -> str | None:
    """Return the next value beyond a grid whose winner lies at an edge, in the ratio of the last step.

    Words in the grid ("none", "gcv") have no place in its order. None where the winner is one, or lies inside, or
    where the last two numbers are not above 0.
    """
    numbers = [value for value in values if number_in(value) is not None]
    if len(numbers) < 2 or winner not in (numbers[0], numbers[-1]):
        return None
    edge, inside = numbers[:-3:-1] if winner == numbers[-1] else numbers[:2]
    first, second = number_in(edge) or 0.0, number_in(inside) or 0.0
    if first <= 0 or second <= 0:
        return None
    further = first * first / second
    whole = all(value.isdecimal() for value in numbers)
    text = str(max(1, round(further))) if whole else f"{further:.3g}"
    return None if text in values else text


def search(grid: Grid, own: Values, score: Score, most: int, valid: Callable[[str, str], bool]) -> Outcome:
    """Return the best values within ``most`` trials.

    Args:
        grid: key -> values in order; the keys are searched in their order.
        own: where the search starts.
        score: trains; the same values are asked for once.
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

    changed, again = bool(grid), False
    while changed and len(known) < most:
        changed = False
        for key in grid:
            changed = improve(key, [best[key], *grid[key]]) or changed
            if not again and key.startswith("method."):
                changed = changed or grow(key) is not None  # once each key has been tried
                continue
            while len(known) < most and (further := grow(key)) is not None:
                grid[key].insert(grid[key].index(best[key]) + (_size(further) > _size(best[key])), further)
                if not improve(key, [further]):
                    break
                changed = True
        again = True
    tried: dict[str, dict[str, float | None]] = {key: {} for key in grid}
    for same, result in known.items():
        for key, value in zip(own, same, strict=True):
            scores = [score for score in (tried[key].get(value), result) if score is not None]
            tried[key][value] = max(scores, default=None)
    ordered = {key: {v: tried[key][v] for v in values if v in tried[key]} for key, values in grid.items()}
    edges = [key for key in grid if grow(key) is not None]
    return Outcome(best, ordered, len(known), edges)
