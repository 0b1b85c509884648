"""List the measures of a run besides its accuracy on all test images."""

from __future__ import annotations

from typing import Any

from everclip.compare.groups import Setting
from everclip.compare.show import stream_name
from everclip.compare.verdict import STREAMS
from everclip.report.tables import Cell, Table, group_cells, mean, table
from everclip.runs.words import percent, points

_ALWAYS = {"macro": "macro accuracy, %", "worst_class.last": "worst class, %"}
_MEANING = {
    "macro accuracy, %": "Macro accuracy counts each class alike.",
    "any-time, %": "Any-time is the area under the accuracy over the images that have passed.",
    "few-shot, %": "Many-, medium- and few-shot are classes by their training images.",
    "Transfer, %": "Transfer, Average and Last count each data set alike: before it is learned, over all stages, and in"
    " the end.",
}
"""What the columns of the table of measures mean, by heading."""


def measures(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, value, meaning) of each measure in the results."""
    rows: list[tuple[str, str, str]] = []
    if (macro := results.get("macro")) is not None:
        rows.append(("macro accuracy", percent(macro), "the mean over classes, with equal weight per class"))
    if worst := results.get("worst_class"):
        rows.append(("worst class", percent(worst["last"]), worst["class"]))
    if (area := results.get("any_time")) is not None:
        what = "the mean over the images that have passed"
        rows.append(("area under any-time accuracy", percent(area), what))
    if groups := results.get("by_frequency"):
        borders = {
            "many": f"more than {groups['many_above']} training images",
            "medium": f"{groups['few_below']} to {groups['many_above']}",
            "few": f"fewer than {groups['few_below']}",
        }
        for name, words in borders.items():
            group = groups[name]
            what = f"{words}: {group['classes']} classes"
            rows.append((f"{name}-shot classes", percent(group["accuracy"]), what))
    if cross := results.get("cross_domain"):
        told = f"told among {'its own classes' if cross['task_id'] == 'known' else 'the classes of all'}"
        base, transfer = cross["transfer_of_zero_shot"], cross["transfer"]
        kept = ""
        if base is not None and transfer is not None:
            kept = f", {points(transfer - base)} points from the pretrained model"
        rows += [
            ("Transfer", percent(transfer), f"each data set before it is learned, {told}{kept}"),
            ("Average", percent(cross["average"]), "each data set over all stages"),
            ("Last", percent(cross["last"]), "all data sets at the end, with equal weight per set"),
        ]
    return rows


def measure_table(setting: Setting) -> Table | None:
    """Return the means over seeds of the measures that all finished runs but references have; None without any."""
    groups = [group for group in setting.every if group.finished]
    rivals = [group for group in groups if not group.reference] or groups
    found = [key for key in (*_ALWAYS, *STREAMS) if rivals and all(group.values(key) for group in rivals)]
    if not found:
        return None
    columns = ["method", "memory", *(_ALWAYS.get(key, f"{stream_name(key)}, %") for key in found)]
    rows: list[list[Cell]] = [
        [*group_cells(group), *(mean(group.interval(key), "share") for key in found)] for group in groups
    ]
    return table(f"{setting.ident}-measures", columns, rows)


def words(table: Table) -> str:
    """Return what the columns of ``measure_table`` mean, in sentences."""
    headings = {heading for heading, _ in table.columns}
    told = [meaning for heading, meaning in _MEANING.items() if heading in headings]
    return " ".join([*told, "Means over seeds ± half of the 95 % interval."])
