"""Write the page's text about many runs: a verdict per setting; tables of accuracy, retention, classes and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from everclip.compare.groups import Group, Memory, Setting
from everclip.metrics.stats import LEAST, Interval, by_chance, interval, paired
from everclip.report.tables import (
    CONFUSION,
    Cell,
    Table,
    amount,
    change,
    confusion_cells,
    group_cells,
    mean,
    table,
    words,
)
from everclip.runs.predictions import (
    calibration_error,
    confusions,
    coverage,
    overconfidence,
    predictions,
    reliability,
)
from everclip.runs.read import RunData
from everclip.runs.words import percent, points, several, size

_MOST_CLASSES = 200  # rows of the per-class table; the CSV file has all
_MOST_PAIRS = 8  # confusions shown of a group


def verdict(setting: Setting) -> list[str]:
    """Return the result in sentences: the best group, and at each memory size how sure the first place is."""
    ranked = sorted((g for g in setting.every if not g.reference and g.finished), key=last_mean, reverse=True)
    if not ranked:
        done = [f"{g.label}: {len(g.curve)} of {len(setting.tasks)} tasks" for g in setting.every if g.curve]
        some = any(group.finished for group in setting.every)
        return ["Only references have finished." if some else "No run of this setting has finished.", *done]
    best, span = ranked[0], ranked[0].interval("last")
    assert span is not None
    title = "Best" if all(run.finished for run in setting.runs) else "Best so far"
    line = f"{title}: {best.label}, {percent(span.mean)} after the last task ({_sure(span)})"
    bases = [] if setting.zero_shot is None else [("zero-shot", setting.zero_shot)]
    bases += [(f"{group.label} training", last_mean(group)) for group in setting.joint]
    images = setting.test_images
    beside = [_beside(span.mean, value, name, images) for name, value in bases]
    return [
        "; ".join([line, *beside]) + ".",
        *(text for size in setting.memories if (text := _first_place(ranked, size))),
    ]


def _beside(last: float, base: float, name: str, images: int) -> str:
    """Return ``12.3 points above zero-shot (13.7 %)``; neutral where the gap may be chance."""
    gap, least = last - base, by_chance(last, base, images)
    if abs(gap) <= least or abs(gap) < 5e-4:
        level = "no better than" if name == "zero-shot" else "level with"
        why = (
            f"; with {images:,} test images a gap below {100 * least:.1f} points may be chance"
            if images
            else ""
        )
        return f"{level} {name} ({percent(base)}{why})"
    return f"{abs(100 * gap):.1f} points {'above' if gap > 0 else 'below'} {name} ({percent(base)})"


def _first_place(ranked: Sequence[Group], size: Memory) -> str:
    """Say how far the best group of a memory size is ahead of the second, by seeds that both have."""
    here = [group for group in ranked if group.memory in (size, None)]
    if len(here) < 2:
        return ""
    first, second = ({run.value("seed"): run.results["last"] for run in group.finished} for group in here[:2])
    both = [seed for seed in first if seed in second]
    names = [f"{group.series} {percent(last_mean(group))}" for group in here[:2]]
    start = f"Memory {size}: {names[0]}, then {names[1]}"
    if not both:
        return f"{start}; they have no seed in common."
    ahead = paired([first[seed] for seed in both], [second[seed] for seed in both])
    if ahead.low is None or ahead.high is None:
        why = (
            f"with {several(ahead.n, 'seed')} the difference may be chance"
            if ahead.n < LEAST
            else "the difference is the same for every seed"
        )
        return f"{start}; {why}."
    chance = "which may be chance" if ahead.low <= 0 <= ahead.high else "more than chance explains"
    return (
        f"{start}; the difference is {points(ahead.difference)} points (95 % interval over"
        f" {several(ahead.n, 'seed')}, paired: {points(ahead.low)} to {points(ahead.high)}), {chance}."
    )


def last_mean(group: Group) -> float:
    """Return a group's last accuracy, the mean over seeds; -1 without any, for sorting."""
    span = group.interval("last")
    return -1.0 if span is None else span.mean


def _sure(span: Interval) -> str:
    if span.low is None or span.high is None:
        return several(span.n, "seed")
    return (
        f"95 % interval {percent(max(0.0, span.low))} to {percent(min(1.0, span.high))},"
        f" {several(span.n, 'seed')}"
    )


def _trained(group: Group, key: str) -> Interval | None:
    """Return the group's interval; there is none where no seed changes anything."""
    span = group.interval(key)
    return span._replace(low=None, high=None, n=1) if span and not group.random else span


def _less(span: Interval | None, base: float | None, setting: Setting) -> Cell:
    if span is None or base is None:
        return change(None)
    return change(span.mean - base, by_chance(span.mean, base, setting.test_images))


def result_table(setting: Setting) -> Table:
    """Return the mean and interval of each group."""
    joint = max((last_mean(group) for group in setting.joint), default=None)
    rows: list[list[Cell]] = []
    for group in setting.every:
        last = _trained(group, "last")
        seeds, runs = len(group.finished), len(group.runs) - len(group.repeated)
        rows.append(
            [
                *group_cells(group),
                Cell(str(seeds) if seeds == runs else f"{seeds} of {runs}", seeds)
                if group.random
                else Cell("any", seeds, "deterministic: every seed gives the same"),
                mean(last, "share"),
                mean(_trained(group, "average"), "share"),
                _less(last, setting.zero_shot, setting),
                _less(last, joint, setting) if not group.reference else Cell("–"),
                mean(_trained(group, "forgetting"), "share"),
                mean(_trained(group, "backward_transfer"), "points"),
                _kept(group),
            ]
        )
    if setting.zero_shot is not None and not any(group.method == "zero_shot" for group in setting.every):
        name, level = words("zero-shot (recorded by each run)"), amount(setting.zero_shot, "share")
        rows.append([name, *[Cell("–")] * 2, level, *[Cell("–")] * 6])
    columns = ["method", "memory", "seeds", "last, %", "average, %", "last − zero-shot", "last − joint"]
    columns += ["forgetting", "backward transfer", "kept: images + state"]
    return _table(setting, "results", columns, rows)


def _kept(group: Group) -> Cell:
    """Say what a group keeps beside the model, in all and part by part; means over seeds."""
    images, state, both = (group.interval(key) for key in ("memory_bytes", "state_bytes", "kept_bytes"))
    if images is None or both is None:
        return Cell("–")
    more = state.mean if state else 0.0
    return Cell(f"{size(images.mean)} + {size(more)}", both.mean, f"{size(both.mean)} in all")


def retention_table(setting: Setting) -> Table:
    """Show what is left of zero-shot, and how far probabilities can be believed."""
    rows: list[list[Cell]] = []
    for group in setting.every:
        if not group.finished:
            continue
        lost = [below(run) for run in group.finished]
        found = [one for run in group.finished if (one := predictions(run)) is not None]
        bins = [inside for one in found if (inside := reliability([one]))]
        rows.append(
            [
                *group_cells(group),
                mean(_interval(share for share, _ in lost), "share"),
                mean(_interval(depth for _, depth in lost), "points"),
                mean(group.interval("forward_transfer"), "points"),
                mean(_interval(coverage(one, 2)[0] for one in found), "share"),
                mean(_interval(calibration_error(inside) for inside in bins), "share"),
                mean(_interval(overconfidence(inside) for inside in bins), "points"),
            ]
        )
    columns = ["method", "memory", "classes below zero-shot, %", "how far below", "unseen next task"]
    return _table(
        setting,
        "retention",
        [*columns, "accuracy of the most confident half, %", "ECE, %", "overconfident by"],
        rows,
    )


def below(run: RunData) -> tuple[float | None, float | None]:
    """Return the fraction of classes that end below zero-shot, and by how much on average (negative); None where there
    is none."""
    rows = [row for row in run.results["per_class"] if None not in (row["last"], row["zero_shot"])]
    gaps = [row["last"] - row["zero_shot"] for row in rows]
    lower = [gap for gap in gaps if gap < 0]
    return len(lower) / len(gaps) if gaps else None, sum(lower) / len(lower) if lower else None


def _interval(values: Iterable[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return interval(known) if known else None


def cost_table(setting: Setting) -> Table:
    """Show what each group took, means over seeds."""
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
            rows.append(
                [*group_cells(group), *(amount(span.mean if span else None, kind) for span, kind in spans)]
            )
    return _table(setting, "cost", ["method", "memory", *(name for name, _ in kinds.values())], rows)


def class_table(setting: Setting) -> tuple[Table, int] | None:
    """Return accuracy of each class before and after, worst first, and how many classes there are; means over seeds."""
    groups = [group for group in setting.every if group.finished and group.method != "zero_shot"]
    if not groups:
        return None
    found: dict[str, dict[str, Any]] = {}
    for k, group in enumerate(groups):
        for run in group.finished:
            for row in run.results["per_class"]:
                if row["last"] is not None:
                    known = found.setdefault(row["class"], row | {"columns": [[] for _ in groups]})
                    known["columns"][k].append((row["last"], row["after_learning"]))
                    if not group.reference:
                        known["task"] = row["task"]
    rows = sorted(
        (_class_row(row) for row in found.values()), key=lambda row: (row[3].value or 0.0, row[0].text)
    )
    columns = ["class", "task", "zero-shot", "mean of all", *(group.label for group in groups)]
    whole = _table(setting, "classes", columns, rows, sorted_by=3)
    return Table(whole.key, whole.columns, whole.rows[:_MOST_CLASSES], whole.csv, whole.sorted_by), len(rows)


def _class_row(row: dict[str, Any]) -> list[Cell]:
    cells: list[Cell] = []
    for values in row["columns"]:
        if not values:
            cells.append(Cell("–"))
            continue
        last = sum(value for value, _ in values) / len(values)
        first = [value for _, value in values if value is not None]
        class_ = "down" if last < (row["zero_shot"] or 0) else ""
        tip = f"{percent(sum(first) / len(first))} right after its task" if first else ""
        cells.append(Cell(f"{100 * last:.0f}", round(last, 4), tip, class_))
    known = [cell.value for cell in cells if cell.value is not None]
    return [
        words(row["class"]),
        Cell(str(row["task"] + 1), row["task"] + 1),
        Cell("–")
        if row["zero_shot"] is None
        else Cell(f"{100 * row['zero_shot']:.0f}", round(row["zero_shot"], 4)),
        Cell(f"{100 * sum(known) / len(known):.0f}", round(sum(known) / len(known), 4), "", "bar"),
        *cells,
    ]


def confusion_table(setting: Setting) -> Table | None:
    """Return the commonest confusions of each group's first run that recorded them."""
    rows: list[list[Cell]] = []
    for group in setting.every:
        for run in islice((run for run in group.finished if confusions(run)), 1):
            rows += [
                [words(group.label), *confusion_cells(run, pair)] for pair in confusions(run)[:_MOST_PAIRS]
            ]
    return _table(setting, "confusions", ["group", *CONFUSION], rows) if rows else None


def _table(
    setting: Setting,
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    sorted_by: int | None = None,
) -> Table:
    return table(f"{setting.ident}-{key}", columns, rows, sorted_by)
