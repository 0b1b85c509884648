"""Draw the figures with one map or bar per group of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib import colormaps
from matplotlib.figure import Figure as Drawing

from everclip.compare.groups import Setting
from everclip.plots import style
from everclip.plots.matrix import lost, signed, task_heatmap
from everclip.plots.per_class import FATE_COLOURS, draw_fates, fate_bars
from everclip.plots.text import shorten, text_width
from everclip.report.figure import WIDE, Figure, canvas, colour_bar, csv_text, fill, place, write
from everclip.report.many_figures import GROUP, named
from everclip.runs.predictions import FATES
from everclip.runs.read import RunData
from everclip.runs.words import rivals, several


def maps(setting: Setting, of: Literal["accuracy", "forgetting"]) -> Figure | None:
    """Return R, or the forgetting, of each group, in one colour scale."""
    drawn = [group for group in setting.groups + setting.level if group.method != "joint"]
    found = {group: group.matrix if of == "accuracy" else lost(group.forgotten) for group in drawn}
    found = {group: rows for group, rows in found.items() if rows and rows[0]}
    if not found:
        return None
    losses = [value for group in found for row in group.forgotten for value in row]
    most = max((abs(value) for value in losses if value is not None), default=0.0)
    reach = max(0.05, math.ceil(20 * most) / 20)
    sizes, tasks = len(setting.memories), max(len(row) for rows in found.values() for row in rows)

    def make(width: float) -> Drawing:
        columns = (sizes if sizes in (3, 4) else 4) if width == WIDE else 2
        side = min((width - 2 - 24 * (columns - 1)) / columns, 300.0)
        cell = side / tasks
        high = min(cell, 24.0)
        step = 48 + high * max(map(len, found.values()))
        height = math.ceil(len(found) / columns) * step
        drawing = canvas(width, height + 40)
        for k, (group, rows) in enumerate(found.items()):
            x, y = 1 + (k % columns) * (side + 24), 24 + (k // columns) * step
            write(drawing, x, y - 11, shorten(group.label, side), fontweight="bold")
            ax = place(drawing, x, y, cell * len(rows[0]), high * len(rows))
            task_heatmap(group, ax, of=of, reach=reach).set(xlabel="", ylabel="")
        if of == "accuracy":
            colours, ticks, told = colormaps["cividis"], ("0 %", "50 %", "100 %"), "accuracy"
        else:
            colours, told = style.diverging(0.75), "points lost"
            ticks = [signed(value, 0) for value in (-reach, 0.0, reach)]
        colour_bar(drawing, (90, height + 10), 220, colours, ticks, told)
        return drawing

    cells = [
        [*named(group), t, *("" if value is None else round(value, 5) for value in row)]
        for group, rows in found.items()
        for t, row in enumerate(rows, 1 if of == "accuracy" else 2)
    ]
    csv = csv_text([*GROUP, "after_task", *(f"task_{i + 1}" for i in range(tasks))], cells)
    told = f"{several(len(found), 'map')}; the numbers are in the CSV file."
    if of == "accuracy":
        key, title = "matrix", "Accuracy on each task after each task"
        caption = (
            "Each row is the model after one more task, each column the test images of one task,"
            f" {rivals(run.task_id for run in setting.runs)}. In %, means over seeds; all maps share one colour scale."
        )
    else:
        key, title = "forgetting", "Forgetting of each task after each task"
        caption = (
            "Points that a task has lost since its best earlier accuracy (orange), or gained on it"
            " (blue), means over seeds; rows and columns as above, without the first row and the last column,"
            " where nothing can have been forgotten yet."
        )
    return Figure(key, title, caption, told, csv, make, setting.ident)


def old_images(named: Iterable[tuple[str, Sequence[RunData]]], prefix: str) -> Figure | None:
    """Return a bar per name: the mean fractions of ``FATES`` over its runs."""
    bars = fate_bars(list(named))
    if not bars:
        return None

    def make(width: float) -> Drawing:
        left = min(max(text_width(name) for name, _ in bars) + 12, 0.4 * width)
        rows = [20.0 * k for k in range(len(FATES))] if width != WIDE else [0.0] * len(FATES)
        drawing = canvas(width, rows[-1] + 28 + 26 * len(bars))
        x = 0.0
        for colour, text, y in zip(FATE_COLOURS, FATES, rows, strict=True):
            fill(drawing, (x, y + 2), 14, 12, facecolor=colour)
            write(drawing, x + 20, y + 8, text)
            x += text_width(text) + 44 if width == WIDE else 0.0
        short = [(shorten(name, left - 8), shares) for name, shares in bars]
        draw_fates(short, place(drawing, left, rows[-1] + 24, width - left - 2, 26 * len(bars)))
        return drawing

    caption = (
        "Test images of all classes except the last task's, after the last task: the percentage"
        " classified correctly, and what the others are mistaken for. A bias towards new classes shows as a"
        " long second part."
    )
    rows = [[name, *(round(share, 5) for share in shares)] for name, shares in bars]
    csv = csv_text(["group", *FATES], rows)
    told = f"{several(len(bars), 'bar')}; the numbers are in the CSV file."
    return Figure("fates", "What old classes are mistaken for", caption, told, csv, make, prefix)
