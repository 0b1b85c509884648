"""Write the page's text about many runs: verdicts, and tables of accuracy, retention, classes and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from everclip.compare.groups import Group, Memory, Setting
from everclip.compare.groups import mean as known_mean
from everclip.errors import UserError
from everclip.metrics.stats import LEAST, Interval, by_chance, interval, mcnemar, paired
from everclip.report import tables
from everclip.report.tables import NOTHING, Cell, Table, amount, change, group_cells, mean, share_cell, words
from everclip.runs import predictions as answers
from everclip.runs.finished import right_both
from everclip.runs.read import RunData
from everclip.runs.words import percent, points, several, size

_MOST_CLASSES = 200  # rows of the per-class table; the CSV file has all
_MOST_PAIRS = 8  # confusions shown of a group


def verdict(setting: Setting) -> list[str]:
    """Return sentences on the best group, and on how certain the first place is at each memory size."""
    ranked = sorted((g for g in setting.every if not g.reference and g.finished), key=last_mean, reverse=True)
    if not ranked:
        done = [f"{g.label}: {len(g.curve)} of {len(setting.tasks)} tasks" for g in setting.every if g.curve]
        some = any(group.finished for group in setting.every)
        return ["Only references have finished." if some else "No run of this setting has finished.", *done]
    best = ranked[0]
    title = "Best" if all(run.finished for run in setting.runs) else "Best so far"
    line = f"{title}: {best.label}, {percent(last_mean(best))} after the last task ({_sure(best)})"
    bases: list[tuple[str, Group | float]] = []
    bases += [] if setting.zero_shot is None else [("zero-shot", setting.zero_shot)]
    bases += [(f"{group.label} training", group) for group in setting.joint]
    beside = [_beside(best, base, name, setting.test_images) for name, base in bases]
    places = (_first_place(ranked, size, setting.test_images) for size in setting.memories or [None])
    return ["; ".join([line, *beside]) + ".", *filter(None, places)]


def _beside(group: Group, base: Group | float, name: str, images: int) -> str:
    """Return ``12.3 points above zero-shot (13.7 %)``; neutral where the gap may be chance."""
    last, other = last_mean(group), last_mean(base) if isinstance(base, Group) else base
    gap, least = last - other, by_chance(last, other, images)
    if abs(gap) > max(least, 5e-4):
        text = f"{abs(100 * gap):.1f} points {'above' if gap > 0 else 'below'} {name} ({percent(other)})"
        return text + ", but the seeds differ so much that this may be chance" * _by_seeds(group, base)
    level = "no better than" if name == "zero-shot" else "level with"
    why = f"; {_noise(least, images)}" if images else ""
    return f"{level} {name} ({percent(other)}{why})"


def _noise(least: float, images: int) -> str:
    return f"with {images:,} test images a gap below {100 * least:.1f} points may be chance"


def _by_seeds(group: Group, base: Group | float) -> bool:
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


def _first_place(ranked: Sequence[Group], size: Memory, images: int) -> str:
    """Say how far the best group of a memory size is ahead of the second on their common seeds.

    The size is None where no group has one.
    """
    here = [group for group in ranked if group.memory in (size, None)][:2]
    if len(here) < 2:
        return ""
    pairs = _pairs(*here)
    names = [f"{group.series} {percent(last_mean(group))}" for group in here]
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
    if some and _by_seeds(*here):
        return f"{start}; {said}, which may be chance."
    if abs(ahead.difference) <= least:
        return f"{start}; {said}, but {_noise(least, images)}."
    chance = "the chance of seeds and test images" if some else "the chance of test images"
    return f"{start}; {said}, more than {chance if least else 'the chance of seeds'} explains."


def last_mean(group: Group) -> float:
    """Return a group's mean last accuracy over seeds; -1 without any."""
    span = group.interval("last")
    return -1.0 if span is None else span.mean


def _sure(group: Group) -> str:
    span = group.interval("last")
    if span is None or not group.random:
        return "every seed gives the same"
    seeds = several(span.n, "seed")
    if span.low is None or span.high is None:
        return seeds
    return f"95 % interval over {seeds}: {percent(max(0.0, span.low))} to {percent(min(1.0, span.high))}"


def _trained(group: Group, key: str) -> Interval | None:
    """Return the group's interval, without ends where the seed makes no difference."""
    span = group.interval(key)
    return span._replace(low=None, high=None, n=1) if span and not group.random else span


def _less(group: Group, base: Group | float | None, images: int) -> Cell:
    """Return the gap to a base, coloured where neither seeds nor test images may explain it."""
    span = group.interval("last")
    if span is None or base is None:
        return change(None)
    other = last_mean(base) if isinstance(base, Group) else base
    least = math.inf if _by_seeds(group, base) else by_chance(span.mean, other, images)
    return change(span.mean - other, least)


def result_table(setting: Setting) -> Table:
    """Return the mean and interval of each group."""
    joint = max(setting.joint, key=last_mean, default=None)
    images = setting.test_images
    rows: list[list[Cell]] = []
    for group in setting.every:
        last = _trained(group, "last")
        row = [*group_cells(group), _seeds(group), mean(last, "share")]
        row += [mean(_trained(group, "average"), "share"), _less(group, setting.zero_shot, images)]
        row.append(NOTHING if group.reference else _less(group, joint, images))
        row.append(mean(_trained(group, "forgetting"), "share"))
        row.append(mean(_trained(group, "backward_transfer"), "points"))
        rows.append([*row, _kept(group)])
    if setting.zero_shot is not None and not any(group.method == "zero_shot" for group in setting.every):
        name, level = words("zero-shot (recorded by each run)"), amount(setting.zero_shot, "share")
        rows.append([name, NOTHING, NOTHING, level, *[NOTHING] * 6])
    columns = ["method", "memory", "seeds", "last, %", "average, %", "last − zero-shot", "last − joint"]
    columns += ["forgetting", "backward transfer", "kept: images + state"]
    return tables.table(f"{setting.ident}-results", columns, rows)


def _seeds(group: Group) -> Cell:
    seeds, runs = len(group.finished), len(group.runs) - len(group.repeated)
    if not group.random:
        return Cell("any", seeds, "deterministic: every seed gives the same")
    return Cell(str(seeds) if seeds == runs else f"{seeds} of {runs}", seeds)


def _kept(group: Group) -> Cell:
    """Return what a group keeps beside the model, in parts and in total; means over seeds."""
    images, state, both = (group.interval(key) for key in ("memory_bytes", "state_bytes", "kept_bytes"))
    if images is None or both is None:
        return NOTHING
    more = state.mean if state else 0.0
    return Cell(f"{size(images.mean)} + {size(more)}", both.mean, f"{size(both.mean)} in all")


def retention_table(setting: Setting) -> Table:
    """Return how much of zero-shot each group retains, and its calibration."""
    rows: list[list[Cell]] = []
    for group in setting.every:
        if not group.finished:
            continue
        lost = [below(run) for run in group.finished]
        found = [one for run in group.finished if (one := answers.predictions(run)) is not None]
        bins = [inside for one in found if (inside := answers.reliability([one]))]
        row = group_cells(group)
        row += [
            mean(_interval(share for share, _ in lost), "share"),
            mean(_interval(depth for _, depth in lost), "points"),
            mean(group.interval("forward_transfer"), "points"),
            mean(_interval(answers.coverage(one, 2)[0] for one in found), "share"),
            mean(_interval(map(answers.calibration_error, bins)), "share"),
            mean(_interval(map(answers.overconfidence, bins)), "points"),
        ]
        rows.append(row)
    columns = ["method", "memory", "classes below zero-shot, %", "how far below", "unseen next task"]
    columns += ["accuracy of the most confident half, %", "ECE, %", "overconfident by"]
    return tables.table(f"{setting.ident}-retention", columns, rows)


def below(run: RunData) -> tuple[float | None, float | None]:
    """Return the fraction of classes that end below zero-shot, and their mean gap (negative); None without any."""
    rows = [row for row in run.results["per_class"] if None not in (row["last"], row["zero_shot"])]
    gaps = [row["last"] - row["zero_shot"] for row in rows]
    lower = [gap for gap in gaps if gap < 0]
    return len(lower) / len(gaps) if gaps else None, sum(lower) / len(lower) if lower else None


def _interval(values: Iterable[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return interval(known) if known else None


def cost_table(setting: Setting) -> Table:
    """Return the cost of each group, means over seeds."""
    kinds = {
        "seconds": ("time", "duration"),
        "images_per_second": ("training images per second", "count"),
        "optimizer_steps": ("optimizer steps", "count"),
        "skipped_steps": ("steps skipped", "count"),
        "trainable_parameters": ("trained parameters", "count"),
        "memory_bytes": ("memory: image bytes", "size"),
        "state_bytes": ("method state", "size"),
        "kept_bytes": ("kept in total", "size"),
        "cache_bytes": ("activation cache", "size"),
        "peak_memory_bytes": ("peak memory", "size"),
    }
    rows: list[list[Cell]] = []
    for group in setting.every:
        if group.finished:
            spans = [(group.interval(key), kind) for key, (_, kind) in kinds.items()]
            cells = (amount(span.mean if span else None, kind) for span, kind in spans)
            rows.append([*group_cells(group), *cells])
    columns = ["method", "memory", *(name for name, _ in kinds.values())]
    return tables.table(f"{setting.ident}-cost", columns, rows)


def class_table(setting: Setting) -> tuple[Table, int] | None:
    """Return the accuracy of each class, worst first, means over seeds; and the number of classes.

    The tasks are left out where runs learn a class in different ones.
    """
    groups = [group for group in setting.every if group.finished and group.method != "zero_shot"]
    if not groups:
        return None
    found: dict[str, dict[str, Any]] = {}
    for k, group in enumerate(groups):
        for run in group.finished:
            for row in run.results["per_class"]:
                if row["last"] is not None:
                    known = found.setdefault(
                        row["class"], row | {"tasks": set(), "columns": [[] for _ in groups]}
                    )
                    after = row["after_learning"] if run.same_images else None
                    known["columns"][k].append((row["last"], after))
                    if not group.reference:
                        known["tasks"].add(row["task"])
    alike = all(len(row["tasks"]) < 2 for row in found.values())  # unlike with orders by the seed
    rows = [_class_row(row, alike) for row in found.values()]
    columns = ["class", *["task"] * alike, "zero-shot", "mean of all", *(group.label for group in groups)]
    place = columns.index("mean of all")
    rows.sort(key=lambda row: (row[place].value or 0.0, row[0].text))
    whole = tables.table(f"{setting.ident}-classes", columns, rows, sorted_by=place)
    return replace(whole, rows=whole.rows[:_MOST_CLASSES]), len(rows)


def _class_row(row: dict[str, Any], with_task: bool) -> list[Cell]:
    cells: list[Cell] = []
    for values in row["columns"]:
        last = known_mean([value for value, _ in values])
        first = known_mean([value for _, value in values])
        class_ = "down" if last is not None and last < (row["zero_shot"] or 0) else ""
        tip = "" if first is None else f"{percent(first)} right after its task"
        cells.append(share_cell(last, tip, class_))
    first = 1 + min(row["tasks"], default=row["task"])
    task = [Cell(str(first), first)] if with_task else []
    whole = share_cell(known_mean([cell.value for cell in cells]), "", "bar")
    return [words(row["class"]), *task, share_cell(row["zero_shot"]), whole, *cells]


def confusion_table(setting: Setting) -> Table | None:
    """Return the most frequent confusions of each group's first run that recorded them."""
    rows: list[list[Cell]] = []
    for group in setting.every:
        run = next((run for run in group.finished if answers.confusions(run)), None)
        if run is not None:
            for pair in answers.confusions(run)[:_MOST_PAIRS]:
                rows.append([words(group.label), *tables.confusion_cells(run, pair)])
    return tables.table(f"{setting.ident}-confusions", ["group", *tables.CONFUSION], rows) if rows else None
