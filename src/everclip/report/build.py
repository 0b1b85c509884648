"""Build the report: one offline HTML file from one run, several runs, or a sweep still in progress."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from everclip.report import one, overview
from everclip.report.collect import Report, collect
from everclip.report.templates import render
from everclip.runs.words import several
from everclip.system.atomic import write_atomic

__all__ = ["build", "collect", "write"]

_DETAILED = 4
"""Most runs shown in full after the overview; with more, the page would be too large to mail."""


def build(runs: Iterable[str | os.PathLike[str]], out: Path) -> Path:
    """Write the report of ``runs`` as one self-contained HTML file; return its path.

    One run is shown in full; several are compared, and also shown in full if they are few. Unfinished runs are
    included as far as they got; paths without a run are named on the page. The file is replaced atomically.

    Args:
        runs: run directories, folders of them (a sweep's ``out``), or patterns such as ``"runs/*"``.
        out: the HTML file to write; its folder is made.

    Raises:
        UserError: none of ``runs`` is a readable run directory.
    """
    return write(collect(runs), out)


def write(report: Report, out: Path, figures: Path | None = None) -> Path:
    """Write the page, and its figures as SVG, PDF, PNG and CSV into the folder ``figures``, if given."""
    single = len(report.runs) == 1 and not report.not_begun
    whole = None if single else overview.context(report)
    detailed = report.runs if len(report.runs) <= _DETAILED else []
    runs = [one.context(run, f"run{k}") for k, run in enumerate(detailed, 1)]
    title = several(len(report.named_states), "run") if whole else report.runs[0].name
    page = render("page.html.j2", title=title, whole=whole, runs=runs, skipped=report.skipped)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Undecodable file names (lone surrogates) are written as escapes instead of failing the report.
    write_atomic(out, page.encode("utf-8", errors="backslashreplace"))
    if figures is not None:
        for name, figure in overview.all_figures(whole) if whole else []:
            figure.save(figures, name)
        names = Counter(run["run"].name for run in runs)
        for k, run in enumerate(runs, 1):
            name = run["run"].name
            for figure in run["figures"].values():
                figure.save(figures, f"{name if names[name] == 1 else f'run{k}-{name}'}-{figure.key}")
    return out
