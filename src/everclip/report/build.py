"""Build the report: one offline HTML file from one run, several runs, or a sweep still in progress."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from everclip.report import one, overview
from everclip.report.collect import Report, collect
from everclip.report.templates import render
from everclip.runs.read import Json
from everclip.runs.words import duration, points, several, size
from everclip.system.atomic import write_atomic

__all__ = ["build", "collect", "duration", "points", "size", "write"]

_DETAILED = 4
"""Largest number of runs that get a part each after the overview; with more the page would be too large to mail."""


def build(runs: Iterable[str | os.PathLike[str]], out: Path) -> Path:
    """Write the report of ``runs`` as one self-contained HTML file.

    One run is shown in full. Several are set side by side, and shown in full behind that while they are few. A run that
    is still going or was interrupted is reported as far as it got; a path that holds no run is named on the page and
    left out. The file is replaced in one step, so a browser never sees half of it.

    Args:
        runs: run directories, folders of them (a sweep's ``out``), or patterns such as ``"runs/*"``.
        out: the HTML file to write; its folder is made.

    Returns:
        ``out``.

    Raises:
        UserError: none of ``runs`` is a readable run directory.
    """
    return write(collect(runs), out)


def write(report: Report, out: Path, figures: Path | None = None) -> Path:
    """Write the page, and its figures as SVG, PDF, PNG and CSV into the folder ``figures`` where one is given."""
    single = len(report.runs) == 1 and not report.not_begun
    whole = None if single else overview.context(report)
    detailed = report.runs if len(report.runs) <= _DETAILED else []
    runs = [one.context(run, f"run{k}") for k, run in enumerate(detailed, 1)]
    out.parent.mkdir(parents=True, exist_ok=True)
    # Undecodable file names (lone surrogates) are written as escapes instead of failing the report.
    write_atomic(out, _page(report, whole, runs).encode("utf-8", errors="backslashreplace"))
    if figures is not None:
        named = overview.all_figures(whole) if whole else []
        named += [
            (f"{run['run'].name}-{figure.key}", figure) for run in runs for figure in run["figures"].values()
        ]
        for name, figure in named:
            figure.save(figures, name)
    return out


def _page(report: Report, whole: Json | None, runs: list[Json]) -> str:
    return render(
        "page.html.j2",
        title=several(len(report.named_states), "run") if whole else report.runs[0].name,
        whole=whole,
        runs=runs,
        skipped=report.skipped,
    )
