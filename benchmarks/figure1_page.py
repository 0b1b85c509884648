"""Draw docs/figure1 from its finished runs: the three panels as one figure, the page, and a table of every cell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.jobs import over_classes, unpacked
from everclip import plots
from everclip.compare.comparable import without_memory
from everclip.compare.groups import Group, Memory, Setting, settings
from everclip.errors import UserError
from everclip.metrics.stats import paired
from everclip.report.svg import embedded, light
from everclip.runs.read import RunData, read_run
from everclip.runs.schema import test_images
from everclip.runs.tuned import searched

PANELS: tuple[tuple[str, str, Memory], ...] = (
    ("cifar100", "a  CIFAR-100", None),
    ("caltech50", "b  Caltech photographs", None),
    ("emoji", "b  emoji", None),
    ("pacs", "c  PACS, memory 0", 0),
    ("pacs", "c  PACS, 10 per class", 10),
    ("emoji-domains", "c  vendors, memory 0", 0),
    ("emoji-domains", "c  vendors, 10 per class", 10),
)
"""Set, title, and exemplars per class of a panel that shows each domain."""
DARK = {"ink": "#e7ebee", "dim": "#a3adb6", "grid": "#333b42", "edge": "#66707a", "page": "#14181c"}
SIZE = (13.0, 11.0)
FAR = 20.0
"""Zero-shot is not drawn where it is more than this many points below all others."""
ABOUT = "Accuracy against memory on three sets of pictures, and after each domain on two"
RIGHT = "right.hex"
"""Which test images a run has right, a bit each, in the order of their ids."""
Seeds = dict[Any, RunData]
"""Runs by their seed."""
CLOSED = ("zero_shot", "ridge", "slda", "layup", "multilayer_lda")
"""Methods that the paper's are not compared with: these learn from frozen features, or add a tower to what does."""
PROBES = ("co2l",)
"""Nor these without exemplars: their published classifier is learned from exemplars."""
COMPARED = {
    "GDRO - GCL": ("gdro", "gcl"),
    "GDRO - finetune": ("gdro", "finetune"),
    "GCL - best other": ("gcl", ""),
    "GDRO - best other": ("gdro", ""),
}
"""Columns of differences, and the two methods of each; an empty name is the best other trained method."""


def runs_of(kept: Path) -> dict[str, list[RunData]]:
    """The finished runs of each set that has any; some memory sizes, and some methods, have folders of their own."""
    parts = ("-0", "-1", "", "-large", "-layup", "-joint", "-joint-linear", "-ours")
    found = {
        name: [run for part in parts for run in read(kept / "runs" / f"{name}{part}")]
        for name, _, _ in PANELS
    }
    return {name: runs for name, runs in found.items() if runs}


def read(folder: Path) -> list[RunData]:
    """The finished runs in a folder."""
    return [read_run(file.parent) for file in sorted(folder.glob("*/results.json"))]


def of_sets(runs: dict[str, list[RunData]]) -> dict[str, Setting]:
    """A setting for each set, with one look per method in all of them."""
    every = settings([run for some in runs.values() for run in some])
    of = {run.path: name for name, some in runs.items() for run in some}
    found = {of[setting.runs[0].path]: setting for setting in every}
    assert len(found) == len(every), "the runs of a set can be compared"
    return found


def at(setting: Setting, memory: Memory) -> Memory:
    """The budget of ``memory`` exemplars per class; None where no run has that."""
    sizes = (g.memory for g in setting.groups for run in g.runs if run.value("memory.per_class") == memory)
    return next(sizes, None)


def figure(found: dict[str, Setting]) -> Figure:
    """The three panels."""
    with rc_context(plots.STYLE):
        made = Figure(figsize=SIZE, dpi=72, layout="constrained")
        grid = made.add_gridspec(2, 1)
        upper = made.add_subfigure(grid[0]).subplots(1, 3)
        lower = made.add_subfigure(grid[1]).subplots(1, 4)
        for ax, (name, title, memory) in zip([*upper, *lower], PANELS, strict=True):
            ax.set_title(title)
            size = None if memory is None or name not in found else at(found[name], memory)
            if name not in found or (memory is not None and size is None):
                ax.text(0.5, 0.5, "not run yet", transform=ax.transAxes, ha="center")
                ax.set(xticks=[], yticks=[])
                continue
            try:
                if memory is None:
                    plots.accuracy_against_memory(found[name], ax, legend=False)
                else:
                    plots.after_each_task(found[name], ax, memory=size, legend=False)
                    ax.set_xlabel("domains learned")
            except UserError as error:  # nothing of this panel has finished
                ax.text(0.5, 0.5, str(error).partition(":")[0], transform=ax.transAxes, ha="center")
            ax.set_title(title)
            crop(ax)
        lines = {named(str(line.get_label())): line for ax in made.axes for line in ax.get_lines()}
        shown = {name: line for name, line in lines.items() if not name.startswith("_")}
        if shown:
            made.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False)
    return made


def named(series: str) -> str:
    """Name a row, that of joint training like the others."""
    return series.replace("options.head none", "head text").replace("options.head", "head")


def crop(ax: Axes) -> None:
    """Leave zero-shot off where all others are far above it, and say so: their differences would not be seen."""
    lines = [(line.get_label() == "zero-shot", np.asarray(line.get_ydata())) for line in ax.get_lines()]
    zero, rest = ([end for own, ends in lines if own is which for end in ends] for which in (True, False))
    if zero and rest and min(rest) - min(zero) > FAR:
        ax.set_ylim(bottom=min(rest) - 5)
        said = " to ".join(dict.fromkeys(f"{end:.1f}" for end in (min(zero), max(zero))))
        ax.text(0.02, 0.02, f"zero-shot: {said} %", transform=ax.transAxes)


def draw(kept: Path) -> None:
    """Write figure.svg, figure-dark.svg, figure.pdf, cells.md and index.html into ``kept``."""
    runs = runs_of(kept)
    found = of_sets(runs)
    made = figure(found)
    svg = embedded(made, "figure1", "The paper's figure", ABOUT)
    (kept / "figure.svg").write_text(light(svg) + "\n", encoding="utf-8")
    (kept / "figure-dark.svg").write_text(light(svg, DARK) + "\n", encoding="utf-8")
    made.savefig(kept / "figure.pdf", metadata={"CreationDate": None})
    less = [run for name in ("terms", "terms-unweighted") for run in read(kept / "runs" / name)]
    whole = [run for run in read(kept / "runs" / "caltech50-1") if run.method in ("gcl", "gdro")]
    switched = terms([*whole, *less]) if less else []
    (kept / "cells.md").write_text("\n".join([*cells(found, runs), *switched]) + "\n", encoding="utf-8")
    if runs:
        folders = sorted({run.path.parent.name for some in runs.values() for run in some})
        words = ["report", *(f"runs/{name}" for name in folders), "-o", "index.html"]
        subprocess.run([sys.executable, "-m", "everclip", *words], cwd=kept, check=True)


def cells(found: dict[str, Setting], runs: dict[str, list[RunData]]) -> list[str]:
    """Return the lines of cells.md: the paper's comparisons, then each cell with its seeds and chosen settings."""
    lines = [
        "# Cells of the figure",
        "",
        "Written by `python -m benchmarks.figure1 --draw`. Accuracy in %: mean (lowest to highest) over the seeds.",
        "",
        "- *Kept*: images and state of the method, besides the model.",
        "- *Chosen*: the settings that the search found, and the number of trials that it used.",
        "- *Left at default*: keys for which no trial was left.",
        "- *At an edge*: the best value is at the end of a grid that could be extended.",
        "- *At the epoch limit*: the best number of epochs is the largest tried, four times that of the start.",
        "- Differences are in points, with a 95 % interval. Where tasks bring new classes it is a bootstrap over",
        "  classes, because images of one class are forgotten together. For domains it is over test images, each",
        "  counted by its mean over the seeds.",
        "- *Best other*: the best trained method except `joint` and `multilayer_lda`; without exemplars also except",
        "  `co2l`, whose classifier is then not the published one.",
        "- *Finetune*: with the text tower as its head, as in GCL and GDRO.",
        *([] if found else ["", "No run has finished yet."]),
    ]
    for name, setting in found.items():
        lines += [
            "",
            f"## {name}",
            "",
            *claims(runs[name]),
            "",
            "| method | memory | kept, MB | last | average | seeds | chosen |",
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | --- | --- |"]
        lines += [row(group) for group in setting.every if group.finished]
    return lines


def terms(runs: Sequence[RunData]) -> list[str]:
    """Return the lines on GCL and GDRO with some of their terms switched off."""
    rows: dict[str, dict[str, Seeds]] = {}
    for run in runs:
        off = [] if run.value("method.carry_over") else ["`carry_over=false`"]
        off += ["`dro=none`"] if run.value("method.dro") == "none" else []
        rows.setdefault(run.method, {}).setdefault(", ".join(off), {})[run.value("seed")] = run
    lines = [
        *("", "## Ablations", ""),
        "The photographs of panel b with 1 exemplar per class. Each row has its own search.",
        *("", "| method | changed | last | difference |", "| --- | --- | ---: | ---: |"),
    ]
    for method, found in rows.items():
        whole = found.get("")
        for off, seeds in sorted(found.items()):
            apart = points(seeds, whole) if off and whole else ""
            lines.append(f"| {method} | {off or 'nothing'} | {spread(lasts(seeds))} | {apart} |")
    return lines


def row(group: Group) -> str:
    """A row of the table."""
    memory = "none kept" if group.memory is None else str(group.memory)
    seeds = ", ".join(str(run.value("seed")) for run in group.finished)
    chosen = "; ".join(dict.fromkeys(map(settings_of, group.finished)))
    numbers = [spread(group.values(key)) for key in ("last", "average")]
    kept = [(run.results["memory_bytes"] + run.results["state_bytes"]) / 1e6 for run in group.finished]
    numbers = [f"{sum(kept) / len(kept):.1f}", *numbers]
    return f"| {named(group.series)} | {memory} | {' | '.join(numbers)} | {seeds} | {chosen} |"


def spread(values: Sequence[float]) -> str:
    """Mean and ends in percent."""
    if not values:
        return "–"
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def settings_of(run: RunData) -> str:
    """What a run's search chose, within how many trials, and what it had no trial left for; empty without one."""
    found = searched(run.value("tuned_on"))
    if found is None:
        return ""
    short = {key: key.partition(".")[2] or key for key in found.tried}
    told = ", ".join(
        f"{short[key]} {run.value(key)}" for key, values in found.tried.items() if len(values) > 1
    )
    told += f" ({found.trials} trials)"
    if left := [short[key] for key, values in found.tried.items() if len(values) == 1]:
        told += f"; left at default: {', '.join(left)}"
    lengths = found.tried.get("train.epochs", ())
    if (
        len(lengths) > 1
        and "train.epochs" not in found.edges
        and run.value("train.epochs") == max(map(int, lengths))
    ):
        told += "; at the epoch limit"
    edges = ", ".join(short[key] for key in found.edges if len(found.tried[key]) > 1)
    return f"{told}; at an edge: {edges}" if edges else told


def rows_of(runs: Sequence[RunData]) -> tuple[dict[str, dict[int | None, Seeds]], list[int]]:
    """Return the runs of a set by row and memory size, None where a method keeps none; and the sizes.

    A run of ours without exemplars also counts at the sizes that are too small for it to use any.
    """
    rows: dict[str, dict[int | None, Seeds]] = {}
    few: dict[str, int] = {}
    for run in runs:
        size = None if without_memory(run) else run.results["memory_budget"]
        cell = rows.setdefault(row_of(run), {}).setdefault(size, {})
        assert run.value("seed") not in cell, f"{run.path} and {cell[run.value('seed')].path} are one cell"
        cell[run.value("seed")] = run
        few[row_of(run)] = (run.value("method.follow_from") or 0) * len(run.results["classes"])
    sizes = sorted({size for found in rows.values() for size in found if size is not None})
    for row, found in rows.items():
        for size in sizes:
            if 0 in found and size < few[row]:
                found.setdefault(size, found[0])
    return rows, sizes


def claims(runs: Sequence[RunData]) -> list[str]:
    """Return how far the paper's methods are from each other and from the best other trained one, by memory size."""
    rows, sizes = rows_of(runs)
    lines = [
        f"| exemplars | {' | '.join(COMPARED)} | best other |",
        f"| ---: |{' ---: |' * len(COMPARED)} --- |",
    ]
    for size in sizes:
        here = {row: found[size] for row, found in rows.items() if size in found}
        known = (*CLOSED, "gcl", "gdro", "joint", *(() if size else PROBES))
        others = [row for row in here if row.partition(",")[0] not in known]
        best = max(others, key=lambda row: np.mean(lasts(here[row])), default="")
        pairs = [(one, other or best) for one, other in COMPARED.values()]
        told = [points(here[a], here[b]) if a in here and b in here else "–" for a, b in pairs]
        lines.append(f"| {size} | {' | '.join(told)} | {best or '–'} |")
    return lines


def points(mine: Seeds, other: Seeds) -> str:
    """Return a difference with its interval, for a table."""
    if not mine.keys() & other.keys():
        return "–"
    if _by_class(mine):
        apart, low, high = between(mine, other)
        return f"{apart:+.1f} ({low:+.1f} to {high:+.1f})"
    found = paired(*common(mine, other))
    if found.low is None or found.high is None:
        return f"{100 * found.difference:+.1f}"
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def between(mine: Seeds, other: Seeds) -> tuple[float, float, float]:
    """Return the difference in the seeds that two cells share, and the ends of its interval over classes."""
    seeds = mine.keys() & other.keys()
    return over_classes(*([runs[seed].results for seed in seeds] for runs in (mine, other)))


def _by_class(runs: Seeds) -> bool:
    """Whether tasks bring new classes, so that images of a class are learned and forgotten together."""
    return all(run.results["scenario"] == "class-incremental" for run in runs.values())


def row_of(run: RunData) -> str:
    """The name of a run's row."""
    named = {key: run.value(f"method.{key}") for key in ("adapt", "probe", "head", "options.head")}
    usual = (None, "none", "text")
    shown = (f"{key.removeprefix('options.')}={value}" for key, value in named.items() if value not in usual)
    return ", ".join([run.method, *shown])


def lasts(runs: Seeds) -> list[float]:
    """The last accuracy of each run."""
    return [run.results["last"] for run in runs.values()]


def lead(mine: Seeds, other: Seeds) -> str:
    """The difference with its interval, as in ``points``, and the difference of each seed."""
    each = " ".join(
        f"{100 * (mine[seed].results['last'] - other[seed].results['last']):+.1f}"
        for seed in sorted(mine.keys() & other.keys())
    )
    if not _by_class(mine):
        return difference(*common(mine, other), f"per seed {each}")
    apart, low, high = between(mine, other)
    return f"{apart:+.1f} points (95 % over classes: {low:+.1f} to {high:+.1f}; per seed {each})"


def common(mine: Seeds, other: Seeds) -> tuple[list[float], list[float]]:
    """Return how often each test image is right in the seeds that two cells share."""
    seeds = mine.keys() & other.keys()
    one, two = (np.mean([right(runs[seed]) for seed in seeds], axis=0).tolist() for runs in (mine, other))
    return one, two


def right(run: RunData) -> np.ndarray:
    """Which test images a run of the figure has right, in the order of their ids."""
    return unpacked((run.path / RIGHT).read_text("utf-8"), test_images(run.results))


def difference(one: Sequence[float], other: Sequence[float], *more: str) -> str:
    """Return by how many points one classifier is ahead on the same test images, with an interval and ``more``."""
    found, reach = paired(one, other), "no interval"
    if found.low is not None and found.high is not None:
        reach = f"95 % over test images: {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{100 * found.difference:+.1f} points ({'; '.join((reach, *more))})"
