"""Write the page's tables about many runs: accuracy, retention, classes and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from everclip.compare.groups import Group, Setting
from everclip.compare.groups import mean as known_mean
from everclip.metrics.stats import Interval, by_chance, interval
from everclip.report import tables
from everclip.report.tables import NOTHING, Cell, Table, amount, change, group_cells, mean, share_cell, words
from everclip.report.verdicts import by_seeds, last_mean, lasts
from everclip.runs import predictions as answers
from everclip.runs.read import RunData
from everclip.runs.words import percent, size

_MOST_CLASSES = 200  # rows of the per-class table; the CSV file has all
_MOST_PAIRS = 8  # confusions shown of a group


def _trained(group: Group, key: str) -> Interval | None:
    """Return the group's interval, without ends where the seed makes no difference."""
    span = group.interval(key)
    return span._replace(low=None, high=None, n=1) if span and not group.random else span


def _less(group: Group, base: Group | float | None, images: int) -> Cell:
    """Return the gap to a base, coloured where neither seeds nor test images may explain it."""
    if not group.finished or base is None:
        return change(None)
    last, other = lasts(group, base)
    least = math.inf if by_seeds(group, base) else by_chance(last, other, images)
    return change(last - other, least)


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
        calibrated = [both for one in found if (both := answers.calibration(one)) is not None]
        row = group_cells(group)
        row += [
            mean(_interval(share for share, _ in lost), "share"),
            mean(_interval(depth for _, depth in lost), "points"),
            mean(group.interval("forward_transfer"), "points"),
            mean(_interval(answers.coverage(one, 2)[0] for one in found), "share"),
            mean(_interval(error for error, _ in calibrated), "share"),
            mean(_interval(over for _, over in calibrated), "points"),
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
