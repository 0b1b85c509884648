"""everclip datasets: list the data sources, and check whether a data set is complete."""

from __future__ import annotations

from everclip import plugins
from everclip.cli._options import Json
from everclip.cli._output import print_json, print_lines
from everclip.cli.catalogue import describe, explain, list_all
from everclip.errors import UserError, shown
from everclip.system.text import printable

_KIND = "data/sources"


def datasets(name: str | None = None, spec: str | None = None, /, *, json: Json = False) -> int:
    """List the data sources, explain one, or check a data set (exit code 1 if it is incomplete, else 0).

    Args:
        name: A source's name, or a module or file of your own; or "check", to count images, look for every file and
            decode a sample.
        spec: After "check": a folder, SOURCE or SOURCE:ARGUMENT, as after data=.
    """
    if name == "check":
        return _check(spec, json)
    if spec is not None:
        raise UserError(
            f'{shown(spec)} after "{name}" is one word too many: use "everclip datasets check {name}"'
        )
    if name is None:
        list_all(_KIND, "datasets", "data=NAME", "data=NAME:PATH", json=json, argued=True)
        return 0
    from everclip.data.sources import Source

    explain(describe(name, lambda name: plugins.find(_KIND, name, Source)), "source.", json)
    return 0


def _check(spec: str | None, json: bool) -> int:
    """Print the findings; return 1 if something is missing or wrong, else 0."""
    if not spec:
        raise UserError('everclip datasets check needs a data set: use "everclip datasets check photos"')
    from everclip.data.check import check
    from everclip.runs.words import several

    report = check(spec)
    if json:
        print_json(report.as_json())
        return 1 if report.problems else 0
    if report.train is not None:
        rows = [("all", report.train, report.test)]
        rows += [
            (printable(name), counts["train"], counts["test"]) for name, counts in report.domains.items()
        ]
        width = max(len(name) for name, _, _ in rows)
        captions = report.captions
        many = (
            several(report.classes or 0, "class")
            if captions is None
            else several(captions, "different caption")
        )
        print(f"{printable(report.data)}: {many}")
        print(f"{'':<{width}}  {'training':>9}  {'test':>9}")
        for name, train, test in rows:
            print(f"{name:<{width}}  {train:>9,}  {test:>9,}")
        print(f"{report.decoded} of a sample of {report.sampled} images can be decoded\n")
    print_lines(report.problems)
    if not report.problems:
        print("complete")
        return 0
    print(
        f"not complete: {printable(report.data)}"
        + (f" (available from {report.home})" if report.home else "")
    )
    return 1
