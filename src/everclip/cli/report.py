"""everclip report: write one HTML page about a run, many runs, or a sweep still in progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from everclip.cli._output import print_json
from everclip.errors import UserError
from everclip.system.text import printable


def report(
    *runs: str,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("report.html"),
    figures: Path | None = None,
    json: bool = False,
) -> None:
    """Write an HTML page about runs: accuracy, forgetting, classes, cost and provenance.

    Args:
        runs: Run directories, folders of them (a sweep's out), or quoted patterns. Runs may be unfinished.
        out: The HTML file to write; it needs no other file and no network.
        figures: A folder to write each figure into, as SVG, PDF, PNG and CSV.
        json: Also print the page's numbers as JSON.
    """
    from everclip.report.build import collect, write
    from everclip.system.outputs import check_file

    page = check_file(out)
    found = collect(runs)
    for line in found.skipped:
        print(f"left out: {printable(line)}", file=sys.stderr)
    try:
        write(found, page, figures)
    except OSError as error:
        where = error.filename or out
        raise UserError(f"{where} cannot be written ({error.strerror}): give another place") from error
    if json:
        print_json({"page": str(out), **found.to_json()})
        return
    print(found.status)
    print(f"report: {out}")
