"""Write the verdict on many runs: which method is best, and whether seeds or test images alone may explain it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from everclip.compare.groups import Group, Memory, Setting
from everclip.errors import UserError
from everclip.metrics.stats import LEAST, Interval, by_chance, interval, mcnemar, paired
from everclip.runs.finished import right_both
from everclip.runs.read import RunData
from everclip.runs.words import percent, points, several


def verdict(setting: Setting) -> list[str]:
    """Return sentences on the best group, and on how certain the first place is at each memory size."""
    ranked, seeds = _ranked(group for group in setting.every if not group.reference)
    if not ranked:
        done = [f"{g.label}: {len(g.curve)} of {len(setting.tasks)} tasks" for g in setting.every if g.curve]
        some = any(group.finished for group in setting.every)
        return ["Only references have finished." if some else "No run of this setting has finished.", *done]
    best = ranked[0]
    title = "Best" if all(run.finished for run in setting.runs) else "Best so far"
    sure = _sure(best, seeds) + _differ(ranked, seeds)
    line = f"{title}: {best.label}, {percent(last_mean(best, seeds))} after the last task ({sure})"
    bases: list[tuple[str, Group | float]] = []
    bases += [] if setting.zero_shot is None else [("zero-shot", setting.zero_shot)]
    bases += [(f"{group.label} training", group) for group in setting.joint]
    beside = [_beside(best, base, name, setting.test_images) for name, base in bases]
    sizes = setting.memories or [None]
    of_size = ([group for group in ranked if group.memory in (size, None)] for size in sizes)
    places = map(_first_place, of_size, sizes, [setting.test_images] * len(sizes))
    return ["; ".join([line, *beside]) + ".", *filter(None, places)]


def _ranked(groups: Iterable[Group]) -> tuple[list[Group], list[Any]]:
    """Return the finished groups, best first, and the seeds that all have in common.

    They are ranked over these seeds, as a seed may be easier for every method; over their own if they share none.
    """
    done = [group for group in groups if group.finished]
    random = [[run.value("seed") for run in group.finished] for group in done if group.random]
    seeds = [seed for seed in random[0] if all(seed in own for own in random)] if random else []
    return sorted(done, key=lambda group: last_mean(group, seeds), reverse=True), seeds


def _differ(groups: Sequence[Group], seeds: Sequence[Any]) -> str:
    """Say over which seeds groups are ranked, unless all of them have the same."""
    if all(len(group.finished) == len(seeds) for group in groups if group.random):
        return ""
    if not seeds:
        return "; the methods share no seed, so their order may be chance"
    return f"; over {'the seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}, which all methods share"


def _beside(group: Group, base: Group | float, name: str, images: int) -> str:
    """Return ``12.3 points above zero-shot (13.7 %)``; neutral where the gap may be chance."""
    last, other = lasts(group, base)
    gap, least = last - other, by_chance(last, other, images)
    if abs(gap) > max(least, 5e-4):
        text = f"{abs(100 * gap):.1f} points {'above' if gap > 0 else 'below'} {name} ({percent(other)})"
        return text + ", but the seeds differ so much that this may be chance" * by_seeds(group, base)
    level = "no better than" if name == "zero-shot" else "level with"
    why = f"; {_noise(least, images)}" if images else ""
    return f"{level} {name} ({percent(other)}{why})"


def _noise(least: float, images: int) -> str:
    return f"with {images:,} test images a gap below {100 * least:.1f} points may be chance"


def by_seeds(group: Group, base: Group | float) -> bool:
    """Return whether the choice of seeds may explain the gap between a group and a base.

    It may if the interval of the differences over seeds includes 0; with two seeds, which have none, their range.
    """
    gaps: list[float] = []
    if isinstance(base, Group):
        gaps = [one.results["last"] - other.results["last"] for one, other in _pairs(group, base)]
        base = last_mean(base)
    gaps = gaps or [last - base for last in group.values("last")]
    span = interval(gaps)
    low, high = (min(gaps), max(gaps)) if span.low is None or span.high is None else (span.low, span.high)
    return low <= 0 <= high


def lasts(group: Group, base: Group | float) -> tuple[float, float]:
    """Return the mean last accuracy of a group and of its base, over their common seeds if there are any."""
    if not isinstance(base, Group):
        return last_mean(group), base
    _, seeds = _ranked([group, base])
    return last_mean(group, seeds), last_mean(base, seeds)


def _pairs(first: Group, second: Group) -> list[tuple[RunData, RunData]]:
    """Return pairs of finished runs with a common seed; one run of a deterministic group stands for every seed."""
    if not first.random and not second.random:
        return [(first.finished[0], second.finished[0])]
    ones, others = ({run.value("seed"): run for run in group.finished} for group in (first, second))
    if not first.random:
        ones = dict.fromkeys(others, first.finished[0])
    if not second.random:
        others = dict.fromkeys(ones, second.finished[0])
    return [(ones[seed], others[seed]) for seed in ones if seed in others]


def _least(pairs: Sequence[tuple[RunData, RunData]], images: int) -> float:
    """Return the mean difference that other test images alone may give; smaller where all answers are known."""
    try:
        known = [right_both(*pair) for pair in pairs]
    except UserError:
        known = [None]
    tests = [mcnemar(*both) for both in known if both is not None]
    if len(tests) == len(pairs):
        return sum(((test.high or 0.0) - (test.low or 0.0)) / 2 for test in tests) / len(tests)
    first, second = ([run.results["last"] for run in group] for group in zip(*pairs, strict=True))
    return by_chance(interval(first).mean, interval(second).mean, images)


def _first_place(groups: Sequence[Group], size: Memory, images: int) -> str:
    """Say how far the best group of a memory size is ahead of the second on their common seeds.

    The size is None where no group has one.
    """
    here = _ranked(groups)[0][:2]
    if len(here) < 2:
        return ""
    here, seeds = _ranked(here)
    pairs = _pairs(*here)
    names = [f"{group.series} {percent(last_mean(group, seeds))}" for group in here]
    start = f"{'First' if size is None else f'Memory {size}:'} {names[0]}, then {names[1]}"
    if not pairs:
        return f"{start}; they have no seed in common."
    ahead = paired(*([run.results["last"] for run in group] for group in zip(*pairs, strict=True)))
    some = any(group.random for group in here)
    if some and ahead.n < LEAST:
        return f"{start}; with {several(ahead.n, 'seed')} the difference may be chance."
    said = f"the difference of {points(ahead.difference)} points is the same for every seed"
    if ahead.low is not None and ahead.high is not None:
        said = (
            f"the difference is {points(ahead.difference)} points (95 % interval over"
            f" {several(ahead.n, 'seed')}, paired: {points(ahead.low)} to {points(ahead.high)})"
        )
    least = _least(pairs, images)
    if some and by_seeds(*here):
        return f"{start}; {said}, which may be chance."
    if abs(ahead.difference) <= least:
        return f"{start}; {said}, but {_noise(least, images)}."
    chance = "the chance of seeds and test images" if some else "the chance of test images"
    return f"{start}; {said}, more than {chance if least else 'the chance of seeds'} explains."


def last_mean(group: Group, seeds: Sequence[Any] = ()) -> float:
    """Return a group's mean last accuracy over its finished runs, or over those of some seeds; -1 without any."""
    span = _over(group, seeds)
    return -1.0 if span is None else span.mean


def _over(group: Group, seeds: Sequence[Any]) -> Interval | None:
    chosen = group.random and seeds
    values = [run.results["last"] for run in group.finished if not chosen or run.value("seed") in seeds]
    return interval(values) if values else None


def _sure(group: Group, seeds: Sequence[Any]) -> str:
    span = _over(group, seeds)
    if span is None or not group.random:
        return "every seed gives the same"
    seeds = several(span.n, "seed")
    if span.low is None or span.high is None:
        return seeds
    return f"95 % interval over {seeds}: {percent(max(0.0, span.low))} to {percent(min(1.0, span.high))}"
