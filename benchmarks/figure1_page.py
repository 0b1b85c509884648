"""Draw docs/figure1 from its finished runs: the three panels as one figure, the page, and a table of every cell."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from everclip import plots
from everclip.compare.groups import Group, Memory, Setting, settings
from everclip.errors import UserError
from everclip.report.svg import VARIABLES, embedded, light
from everclip.runs.read import RunData, read_run

PANELS: tuple[tuple[str, str, Memory], ...] = (
    ("cifar100", "a  CIFAR-100", None),
    ("caltech50", "b  Caltech photographs", None),
    ("emoji", "b  emoji", None),
    ("pacs", "c  PACS, memory 0", 0),
    ("pacs", "c  PACS, 10 per class", 10),
    ("emoji-domains", "c  emoji vendors, memory 0", 0),
    ("emoji-domains", "c  emoji vendors, 10 per class", 10),
)
"""Set, title, and exemplars per class of a panel that shows each domain."""
DARK = {"ink": "#e7ebee", "dim": "#a3adb6", "grid": "#333b42", "edge": "#66707a", "page": "#14181c"}
SIZE = (13.0, 11.0)
ABOUT = "Accuracy against memory on three sets of pictures, and after each domain on two"
_SEARCHED = re.compile(r"; ([\w.]+) ")


def runs_of(kept: Path) -> dict[str, list[RunData]]:
    """The finished runs of each set that has any."""
    folders = {name: kept / "runs" / name for name, _, _ in PANELS}
    found = {
        name: [read_run(file.parent) for file in sorted(folder.glob("*/results.json"))]
        for name, folder in folders.items()
    }
    return {name: runs for name, runs in found.items() if runs}


def of_sets(runs: dict[str, list[RunData]]) -> dict[str, Setting]:
    """A setting for each set, with one look per method in all of them."""
    every = settings([run for some in runs.values() for run in some])
    of = {run.path: name for name, some in runs.items() for run in some}
    found = {of[setting.runs[0].path]: setting for setting in every}
    assert len(found) == len(every), "the runs of a set can be compared"
    return found


def at(setting: Setting, memory: Memory) -> Memory:
    """The budget of ``memory`` exemplars per class."""
    sizes = [size for size in setting.memories if isinstance(size, int)]
    return 0 if not memory else max(sizes, default=0)


def figure(found: dict[str, Setting], colours: dict[str, str]) -> Figure:
    """The three panels."""
    ink = {
        key: colours.get(value, value) if isinstance(value, str) else value
        for key, value in plots.STYLE.items()
    }
    with rc_context(ink):
        made = Figure(figsize=SIZE, dpi=72, layout="constrained")
        grid = made.add_gridspec(2, 1)
        upper = made.add_subfigure(grid[0]).subplots(1, 3)
        lower = made.add_subfigure(grid[1]).subplots(1, 4)
        for ax, (name, title, memory) in zip([*upper, *lower], PANELS, strict=True):
            ax.set_title(title)
            if name not in found:
                ax.text(0.5, 0.5, "not run yet", transform=ax.transAxes, ha="center")
                ax.set(xticks=[], yticks=[])
                continue
            try:
                if memory is None:
                    plots.accuracy_against_memory(found[name], ax, legend=False)
                else:
                    plots.after_each_task(found[name], ax, memory=at(found[name], memory), legend=False)
                    ax.set_xlabel("domains learned")
            except UserError as error:  # nothing of this panel has finished
                ax.text(0.5, 0.5, str(error).partition(":")[0], transform=ax.transAxes, ha="center")
            ax.set_title(title)
        named = {str(line.get_label()): line for ax in made.axes for line in ax.get_lines()}
        shown = {name: line for name, line in named.items() if not name.startswith("_")}
        if shown:
            made.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, frameon=False)
    return made


def draw(kept: Path) -> None:
    """Write figure.svg, figure-dark.svg, figure.pdf, cells.md and index.html into ``kept``."""
    runs = runs_of(kept)
    found = of_sets(runs)
    svg = embedded(figure(found, {}), "figure1", "The paper's figure", ABOUT)
    (kept / "figure.svg").write_text(light(svg) + "\n", encoding="utf-8")
    dark = {value: DARK[name] for value, name in VARIABLES.items() if name in DARK}
    svg = embedded(figure(found, dark), "figure1", "The paper's figure", ABOUT)
    (kept / "figure-dark.svg").write_text(light(svg) + "\n", encoding="utf-8")
    figure(found, {}).savefig(kept / "figure.pdf", metadata={"CreationDate": None})
    (kept / "cells.md").write_text(cells(found), encoding="utf-8")
    if runs:
        words = ["report", *(f"runs/{name}" for name in runs), "-o", "index.html"]
        subprocess.run([sys.executable, "-m", "everclip", *words], cwd=kept, check=True)


def cells(found: dict[str, Setting]) -> str:
    """Every cell with its seeds, and the settings that its search chose."""
    lines = [
        "# Cells of the figure",
        "",
        "Written by `python -m benchmarks.figure1 --draw`. Accuracy in %: mean (lowest to highest) over the seeds;",
        "*chosen*: what the search found, of how many trials.",
        *([] if found else ["", "No run has finished yet."]),
    ]
    for name, setting in found.items():
        lines += ["", f"## {name}", "", "| method | memory | last | average | seeds | chosen |"]
        lines += ["| --- | ---: | ---: | ---: | --- | --- |"]
        lines += [row(group) for group in setting.every if group.finished]
    return "\n".join(lines) + "\n"


def row(group: Group) -> str:
    """A row of the table."""
    memory = "none kept" if group.memory is None else str(group.memory)
    seeds = ", ".join(str(run.value("seed")) for run in group.finished)
    chosen = "; ".join(dict.fromkeys(map(settings_of, group.finished)))
    numbers = [spread(group.values(key)) for key in ("last", "average")]
    return f"| {group.series} | {memory} | {' | '.join(numbers)} | {seeds} | {chosen} |"


def spread(values: Sequence[float]) -> str:
    """Mean and ends in percent."""
    if not values:
        return "–"
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def settings_of(run: RunData) -> str:
    """What a run's search chose, and within how many trials; empty where nothing was searched."""
    told = str(run.value("tuned_on") or "")
    trials = re.search(r", (\d+) of (\d+) trials", told)
    values = [f"{key.partition('.')[2] or key} {run.value(key)}" for key in _SEARCHED.findall(told)]
    return f"{', '.join(values)} ({trials[1]} of {trials[2]} trials)" if trials else ", ".join(values)
