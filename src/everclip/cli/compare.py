"""everclip compare: compare finished runs, with the uncertainty of the differences."""

from __future__ import annotations

import sys
from typing import Literal

from everclip.cli._options import Json, Repeated


def compare(
    *runs: str,
    by: str | None = None,
    metric: str | None = None,
    over: str = "seed",
    against: str | None = None,
    equal: Literal["bytes", "steps", "samples"] | None = None,
    spread: Literal["ci", "std", "range"] = "ci",
    fail_if: Repeated = None,
    anyway: bool = False,
    json: Json = False,
    csv: bool = False,
    latex: bool = False,
) -> int:
    """Compare finished runs: means, intervals over seeds, paired tests.

    Args:
        runs: Run directories, or folders of them, such as a sweep's.
        by: Comma-separated config keys: one table per value (default: memory.budget, where it varies).
        metric: Comma-separated numbers of results.json; the first one is tested (default: last, average, forgetting;
            for images with captions also recall@1 in both directions, and for streams their own measures).
        over: Comma-separated config keys in which repetitions differ.
        against: The method, or row, to test against (default: the best in each table).
        equal: One table per level of this cost; each method enters with its most expensive setting within that level.
        spread: What to show beside each mean: ci, its 95 % interval (Student t), or the std or range of the
            repetitions. Two repetitions have neither ci nor std.
        fail_if: Exit with code 3 if this holds for the means: "A<B" for two methods, or "KEY=VALUE METRIC<NUMBER".
        anyway: Show runs together even if they are not comparable.
        csv: Print CSV, one line per row.
        latex: Print a LaTeX tabular.
    """
    from rich.console import Console

    from everclip.cli._output import print_json
    from everclip.compare import gates, show, verdict
    from everclip.errors import UserError
    from everclip.runs.find import find_runs

    if json + csv + latex > 1:
        raise UserError("--json, --csv and --latex are given together: use one of them")
    found = find_runs(runs)
    metrics = list(dict.fromkeys(word.strip() for word in (metric or "").split(",") if word.strip()))
    if metric is None:
        metrics = [*verdict.metrics_of(found)]
    elif not metrics:
        raise UserError("--metric names no number: use for example --metric last,forgetting")
    conditions = fail_if or []
    shown = len(metrics)
    metrics += [read for condition in conditions for read in gates.metrics_of(condition)]
    comparison = verdict.compare(
        found,
        by=None if by is None else [key.strip() for key in by.split(",")],
        metrics=list(dict.fromkeys(metrics)),
        over=[key.strip() for key in over.split(",")],
        against=against,
        equal=equal,
        anyway=anyway,
        spread=spread,
    )
    broken = [line for condition in conditions for line in gates.broken(condition, comparison)]
    comparison["metrics"] = comparison["metrics"][:shown]
    if json:
        print_json(comparison | {"broken": broken})
    elif csv or latex:
        print((show.as_csv if csv else show.as_latex)(comparison), end="")
    else:
        show.show(comparison, Console())
    for line in broken:
        print(f"gate not met: {line}", file=sys.stderr)
    return 3 if broken else 0
