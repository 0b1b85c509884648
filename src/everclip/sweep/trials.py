"""Search settings within a number of trials, the same for every method, however many options it has to tune.

A trial is one trained run. The search starts from the config's own values. Key by key, it chooses the best value
with the others at their current values. Where the best value lies at an edge of its grid, the grid grows beyond it as
long as the result improves: grids of rates and of ``train.epochs`` (up to four times the config's own) at once, grids
of the method's own options, epochs of its phases among them, once every key has been tried. The search repeats while
anything changes and trials are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from everclip.config import Config
from everclip.data import scenarios
from everclip.methods import method_of
from everclip.methods.base.registry import method_class
from everclip.models.tunings import tuning_of
from everclip.runs.tuned import beyond, meant
from everclip.runs.words import plain
from everclip.system.text import number_in
from everclip.training.estimate import inner

MOST = 24
"""Default number of trials per method and memory size."""
RATES = ("train.lr", "train.lr_text", "train.lr_head")
"""All rates."""
FACTORS = (0.3, 1.0, 3.0)
"""The initial grid of a rate: the config's own times these factors."""
WIDE = (0.1, 0.3, 1.0, 3.0)
"""The same where grids do not grow."""
WIDE_HEAD = (0.3, 1.0, 3.0, 10.0)
"""The same for a head, which hardly learns at too small a rate."""

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

    A stream that passes once has no length.

    Args:
        fixed: keys to leave out, since the user has set them.
    """
    method = method_class(config.method.name).Config
    once, constants = scenarios.build(config.scenario).once, {}
    for name, values in method.search.items():
        if once and name.endswith("epochs"):
            continue
        words = [plain(value) for value in values]
        own = plain(config.method.options.get(name))
        constants[f"method.{name}"] = words if own in words else sorted([*words, own], key=_size)
    first = (f"method.{name}" for name in method.search_first)
    found: Grid = {key: constants[key] for key in first if key in constants}
    # The best rate depends on the length more than the length on the rate: longer runs need smaller ones.
    settled = once or "epochs" in method.search or {"train.epochs", "train.steps"} & {*fixed}
    if method_of(config).capabilities.trains and not settled:
        found |= _length(config)
    found |= rates(config)
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


def rate_keys(config: Config) -> list[str]:
    """Return the rates of what trains; none where the method trains nothing."""
    if not method_of(config).capabilities.trains:
        return []
    own = own_rates(config)
    tuned = [r for r in tuning_of(config.tune, config.tuning.options).rates if own is None or r in own]
    name, options = inner(config)
    reads_text = own is not None or (
        method_class(name).passes.text != "none" and options.get("head") != "linear"
    )
    trains = ("lr" in tuned, "lr_text" in tuned and reads_text, has_head(config))
    return [key for key, found in zip(RATES, trains, strict=True) if found]


def rates(config: Config, wide: bool = False) -> Grid:
    """Return a grid around each rate of what trains.

    Args:
        wide: for a search whose grids do not grow; the text tower's then has 0, too, if the image tower trains.
    """
    grid: Grid = {}
    for key in rate_keys(config):
        rate = getattr(config.train, key.removeprefix("train."))
        factors = (WIDE_HEAD if key == "train.lr_head" else WIDE) if wide else FACTORS
        if rate:
            grid[key] = [f"{rate * factor:.3g}" for factor in factors]
    if wide and "train.lr_text" in grid and "train.lr" in grid:
        grid["train.lr_text"].insert(0, "0")
    return grid


def _length(config: Config) -> Grid:
    key = "steps" if config.train.steps is not None else "epochs"
    own = config.train.steps or config.train.epochs or 1
    return {f"train.{key}": [str(count) for count in sorted({max(1, own // 2), own, 2 * own})]}


def _size(text: str) -> float:
    """Return a sort key: numbers by size, after other texts."""
    value = number_in(text)
    return -1.0 if value is None else value


def start(config: Config, grid: Mapping[str, list[str]]) -> Values:
    """Return the config's own value of each key as its grid writes it; the grid's first value where it lacks that."""
    found: Values = {}
    for key, values in grid.items():
        section, _, name = key.rpartition(".")
        own: Any = config.method.options.get(name) if section == "method" else None
        if section == "train":
            own = getattr(config.train, name, None)
        elif key == "center":
            own = config.center
        rounded = [float(f"{own:.{digits}g}") for digits in (6, 3)] if isinstance(own, float) else []
        words = (meant(values, value) for value in (own, *rounded))  # as grids may have rounded it
        found[key] = next((word for word in words if word is not None), values[0])
    return found


def outcome(tried: Mapping[str, Mapping[str, object]], grid: Grid, own: Values, ran_out: bool) -> bool:
    """Return whether a search from these grids and this start could have tried these values.

    They must be the grids' values, in order, up to where the trials ran out, and values that the grids can grow by.

    Args:
        own: where the search starts; empty for one whose grids do not grow.
    """
    if [*tried] != [*grid]:
        return False
    reached: list[bool] = []
    for key, values in grid.items():
        known, numbers = [*tried[key]], [_value(value) for value in values]
        have = [_value(value) for value in known]
        begun = _value(own[key]) if key in own else None
        if begun is not None and begun not in have:
            return False
        reached += [number in have for number in numbers if number != begun]
        grown, extra = list(values), [value for value in known if _value(value) not in numbers]
        while extra:
            more = {text for value in grown if (text := beyond(grown, value)) is not None} if own else set()
            if not more & {*extra}:
                return False
            grown += more & {*extra}
            extra = [value for value in extra if value not in more]
    return all(reached) or (ran_out and reached == sorted(reached, reverse=True))


def _value(text: str) -> str | float:
    """Return a text's number if it is one, else the text: ``1e-5`` and ``0.00001`` are the same value."""
    number = number_in(text)
    return text if number is None else number


def read(config: Config, values: Values) -> Values:
    """Return those of ``values`` that a run reads: not the options that another option's value makes void."""
    void = method_class(config.method.name).Config.search_only

    def is_read(key: str) -> bool:
        name = key.removeprefix("method.")
        if name == key or name not in void:
            return True
        other, needed = void[name]
        return values.get(f"method.{other}", plain(config.method.options.get(other))) == plain(needed)

    return {key: value for key, value in values.items() if is_read(key)}


@dataclass
class _Scored:
    """The scores of trials, each trained once; ``score``, ``most`` and ``read`` are those of ``search``."""

    score: Score
    most: int
    read: Callable[[Values], Values]
    known: dict[tuple[tuple[str, str], ...], float | None] = field(default_factory=dict)  # by all values
    trained: dict[tuple[tuple[str, str], ...], float | None] = field(default_factory=dict)  # by those read

    @property
    def left(self) -> bool:
        """Whether another run may be trained."""
        return len(self.trained) < self.most

    def ask(self, trial: Values) -> float | None:
        """Return the score of a trial; None where it does not train, or no run is left for it."""
        same, alike = (tuple(values.items()) for values in (trial, self.read(trial)))
        if alike not in self.trained:
            if not self.left:
                return None
            self.trained[alike] = self.score(trial)
        self.known[same] = self.trained[alike]
        return self.known[same]


def search(
    grid: Grid,
    own: Values,
    score: Score,
    most: int,
    valid: Callable[[str, str], bool],
    read: Callable[[Values], Values] = dict,
) -> Outcome:
    """Return the best values within ``most`` trials.

    Args:
        grid: key -> values in order; the keys are searched in their order.
        own: where the search starts. Keys that it lacks have the config's own value until their turn, and then the
            best of their grid, whether that is better or not.
        score: trains with some values; it is called once for the same ones.
        valid: whether a grid may grow by a value.
        read: leaves out values that make no difference, so that no trial is spent on them.
    """
    grid = {key: list(values) for key, values in grid.items()}
    scored = _Scored(score, most, read)
    best: Values = dict(own)
    top: float | None = None

    def improve(key: str, values: list[str]) -> bool:
        nonlocal best, top
        before = best
        if key in best:
            values = [best[key], *values]
        else:
            top = None
        for value in values:
            trial = best | {key: value}
            result = scored.ask(trial)
            if result is not None and (top is None or result > top):
                best, top = trial, result
        return best is not before

    def grow(key: str) -> str | None:
        further = beyond(grid[key], best[key])
        return further if further is not None and valid(key, further) else None

    changed, again = bool(grid), False
    while changed and scored.left:
        changed = False
        for key in grid:
            if not scored.left:
                break  # trials that are known already would seem to be of a key whose turn never came
            changed = improve(key, grid[key]) or changed
            if key not in best:  # no value trains
                changed = False
                break
            if not again and key.startswith("method."):
                changed = changed or grow(key) is not None  # once each key has been tried
                continue
            while scored.left and (further := grow(key)) is not None:
                grid[key].insert(grid[key].index(best[key]) + (_size(further) > _size(best[key])), further)
                if not improve(key, [further]):
                    break
                changed = True
        again = True
    tried: dict[str, dict[str, float | None]] = {key: {} for key in grid}
    for same, result in scored.known.items():
        for key, value in same:
            scores = [score for score in (tried[key].get(value), result) if score is not None]
            tried[key][value] = max(scores, default=None)
    ordered = {
        k: {v: tried[k][v] for v in sorted(values, key=_size) if v in tried[k]} for k, values in grid.items()
    }
    edges = [
        key for key in best if len(ordered[key]) > 1 and grow(key) is not None
    ]  # a lone value had no trial
    return Outcome(best, ordered, len(scored.trained), edges)
