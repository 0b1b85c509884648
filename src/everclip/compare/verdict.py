"""Compare runs: means with intervals, paired tests against one row, ranks; everything ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from everclip.compare import cells
from everclip.compare.cells import Repetition, Row, Section
from everclip.compare.comparable import REFERENCES, shown, without_memory
from everclip.errors import UserError, suggest
from everclip.metrics.ranks import critical_difference, friedman, mean_ranks
from everclip.metrics.retrieval import WAYS
from everclip.metrics.stats import holm, interval, mcnemar, paired, sign_flip
from everclip.metrics.streams import GROUPS
from everclip.runs.finished import Finished, right_both

Json = dict[str, Any]

METRICS = ("last", "average", "forgetting")
RECALLS = tuple(f"{way}_recall_at_1" for way in WAYS)
"""Metrics shown besides ``METRICS`` for runs on images with captions."""
STREAMS = (
    "any_time",
    *(f"by_frequency.{group}.accuracy" for group in GROUPS),
    *(f"cross_domain.{name}" for name in ("transfer", "average", "last")),
)
"""Metrics of runs whose scenario measures them."""
_LOWER = (
    *("forgetting", "seconds", "optimizer_steps", "samples_seen", "trainable_parameters"),
    *("skipped_steps", "duplicates", "train_copies"),
    *(f"{way}_median_rank" for way in WAYS),
)


def higher_is_better(metric: str) -> bool:
    """Return whether a larger value of this key of results.json is better."""
    return metric not in _LOWER and not metric.endswith("_bytes")


def metrics_of(runs: Sequence[Finished]) -> tuple[str, ...]:
    """Return the default metrics: ``METRICS``, and those of recall and streams that all runs but references have."""
    rivals = [run for run in runs if run.method not in REFERENCES] or runs
    more = RECALLS + STREAMS if runs else ()
    return *METRICS, *(key for key in more if all(cells.known(run, key) is not None for run in rivals))


def compare(
    runs: Sequence[Finished],
    *,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    over: Sequence[str] = ("seed",),
    against: str | None = None,
    equal: str | None = None,
    anyway: bool = False,
    spread: str = "ci",
) -> Json:
    """Return sections of rows, each with the mean and 95 % interval of every metric, and tests of the first one.

    Args:
        by: config keys with a section per combination of values; None: ``memory.budget`` where it varies.
        metrics: keys of results.json; the first is tested.
        over: config keys of the repetitions.
        against: the method, or the label of the row, to test against; None: the best row of each section.
        equal: "bytes", "steps" or "samples": one section per level of that cost, not per memory size.
        anyway: show runs together even if they are not comparable.
        spread: what to show beside a mean: its 95 % interval ("ci"), or the "std" or "range" of the repetitions.

    Raises:
        UserError: nothing to compare, an unknown key or row, or runs that are not comparable.
    """
    if not runs:
        raise UserError("no finished run to compare: give run directories, such as runs/*")
    by = _default_by(runs) if by is None else list(by)
    if equal is not None:
        if equal not in cells.COSTS:
            raise UserError(f'--equal is "{equal}": use bytes, steps or samples')
        by = [key for key in by if not key.startswith("memory.")]
    found = cells.sections(runs, by, over)
    if not anyway:
        cells.check(found, by, over)
    rows = [row for section in found for row in section.rows]
    if against is not None and not any(against in (row.label, row.method) for row in rows):
        raise UserError(
            f'no row to test against is "{against}"{suggest(against, {row.label for row in rows})}'
        )
    if equal is not None:
        found = cells.at_equal_cost(found, equal, against)
    tests: _Tests = {}
    tables = [_section(section, metrics, over, against, equal, tests) for section in found]
    _correct(tests)
    return {
        "metrics": list(metrics),
        "level": 0.95,
        "by": list(found[0].by),
        "over": list(over),
        "spread": spread,
        "runs": len({run.path for run in runs}),
        "equal": equal,
        "against": against,
        "sections": tables,
        "ranks": _overall(found, metrics[0]),
    }


def _default_by(runs: Sequence[Finished]) -> list[str]:
    """Return the default of ``by``: the memory's size, if methods that use it have several."""
    sizes = {shown(run.value("memory.budget")) for run in runs if not without_memory(run)}
    return ["memory.budget"] if len(sizes) > 1 else []


_Tests = dict[tuple[Any, ...], list[Json]]
"""By the runs of both rows and p: rows that every section has, such as those without a memory, give one test again."""


def _section(
    section: Section,
    metrics: Sequence[str],
    over: Sequence[str],
    against: str | None,
    equal: str | None,
    tests: _Tests,
) -> Json:
    measured = [(row, row.values(metrics[0])) for row in section.rows]
    base = _base(measured, metrics[0], against)
    measured = _at_every_seed(measured, over)
    blocks, ranks = _ranks(measured, metrics[0])
    rival = {id(row): rank for row, rank in ranks}
    others = next((values for row, values in measured if row is base), {})
    rows: list[Json] = []
    for row, values in measured:
        entry: Json = {
            "label": row.label,
            "method": row.method,
            "options": row.options,
            "settings": cells.settings(row),
            "reference": row.reference,
            "repetitions": [list(repetition) for repetition in row.runs],
            "paths": [] if row.recorded else [str(run.path) for run in row.runs.values()],
            "metrics": {metric: _mean(row, metric) for metric in metrics},
            "random": row.random,
            "kept": cells.kept_by(row),
            "rank": rival.get(id(row)),
            "test": None,
        }
        if equal is not None and not row.reference:
            entry["cost"] = cells.cost(row, equal)
        if base is not None and row is not base and not row.reference:
            entry["test"] = test = _test((row, values), (base, others), metrics[0])
            if test is not None:
                both = (row.recorded, *row.runs.values()), (base.recorded, *base.runs.values())
                tests.setdefault((*both, test["p"]), []).append(test)
        rows.append(entry)
    against = None if base is None else base.label
    return {"by": section.by, "against": against, "ranked": blocks, "rows": rows}


def _at_every_seed(
    measured: Sequence[tuple[Row, dict[Repetition, float]]], over: Sequence[str]
) -> list[tuple[Row, dict[Repetition, float]]]:
    """Return rows and values, with those of deterministic rows repeated for every seed of another row."""
    if "seed" not in over:
        return list(measured)
    every = dict.fromkeys(at for _, values in measured for at in values)
    rest = {at: cells.besides_seed(at, over) for at in every}
    made: list[tuple[Row, dict[Repetition, float]]] = []
    for row, values in measured:
        if not row.seeded:
            known = {rest[at]: value for at, value in values.items()}
            values = {at: values.get(at, known[rest[at]]) for at in every if rest[at] in known}
        made.append((row, values))
    return made


def _mean(row: Row, metric: str) -> Json | None:
    values = list(row.values(metric).values())
    if not values:
        return None
    deviation = stdev(values) if len(values) > 1 else None
    return {**interval(values)._asdict(), "std": deviation, "values": values}


def _base(
    measured: Sequence[tuple[Row, dict[Repetition, float]]], metric: str, against: str | None
) -> Row | None:
    """Return the row to test against: the one asked for, else the best that is not a reference."""
    known = [(row, fmean(values.values())) for row, values in measured if values]
    if against is not None:
        asked = [row for row, _ in known if against == row.label]
        asked = asked or [row for row, _ in known if against == row.method]
        if len(asked) > 1:
            labels = '", "'.join(row.label for row in asked)
            raise UserError(f'several rows to test against are "{against}": use one of "{labels}"')
        return asked[0] if asked else None
    sign = 1 if higher_is_better(metric) else -1
    rivals = [(row, sign * mean) for row, mean in known if not row.reference]
    return max(rivals, key=lambda pair: pair[1], default=(None,))[0]


def _test(
    one: tuple[Row, dict[Repetition, float]], other: tuple[Row, dict[Repetition, float]], metric: str
) -> Json | None:
    """Return the paired test over the repetitions that both rows have; of rows with one result each, McNemar's over
    test images.

    ``left_out`` counts the repetitions that only one row has: its mean includes them.
    """
    (row, values), (base, others) = one, other
    shared = [at for at in values if at in others]
    first, second = [values[at] for at in shared], [others[at] for at in shared]
    if all(len(each.runs) == 1 or not each.random for each in (row, base)):
        if not shared or metric != "last" or base.recorded:
            return None
        answers = right_both(*(next(iter(each.runs.values())) for each in (row, base)))
        if answers is None:
            return None
        return {"name": "mcnemar", "sign_flip": None, "left_out": 0, **mcnemar(*answers)._asdict()}
    if not shared:
        return None
    flipped = sign_flip(first, second) if len(shared) > 1 else None
    own = {at for each, known in (one, other) if each.seeded for at in known}
    more = {"sign_flip": flipped, "left_out": len(own.difference(shared))}
    return {"name": "paired t", **more, **paired(first, second)._asdict()}


def _correct(tests: _Tests) -> None:
    """Add Holm's correction over all tests of the comparison, each counted once."""
    known = [p for *_, p in tests if p is not None]
    corrected = iter(holm(known))
    for (*_, p), same in tests.items():
        p_holm = None if p is None else next(corrected)
        for test in same:
            test["p_holm"] = p_holm


def _ranks(
    measured: Sequence[tuple[Row, dict[Repetition, float]]], metric: str
) -> tuple[int, list[tuple[Row, float]]]:
    """Return the number of repetitions that all rows but references have, and each row's mean rank over these."""
    rivals = [(row, values) for row, values in measured if values and not row.reference]
    shared = [at for at in (rivals[0][1] if rivals else {}) if all(at in values for _, values in rivals)]
    if len(rivals) < 2 or not shared:
        return 0, []
    table = [[values[at] for _, values in rivals] for at in shared]
    means = mean_ranks(table, higher_is_better(metric))
    return len(shared), [(row, rank) for (row, _), rank in zip(rivals, means, strict=True)]


def _overall(found: Sequence[Section], metric: str) -> Json | None:
    """Return the mean ranks, over sections, of the rows that every section has; None for one section or one row.

    Only data sets are independent, so only they are tested over (``everclip.metrics.ranks``).
    """
    rivals = [[row for row in section.rows if not row.reference] for section in found]
    means = [
        {row.label: fmean(values.values()) for row in rows if (values := row.values(metric))}
        for rows in rivals
    ]
    known = dict.fromkeys(label for some in means for label in some)
    labels = [label for label in known if all(label in some for some in means)]
    if len(found) < 2 or len(labels) < 2:
        return None
    table = [[some[label] for label in labels] for some in means]
    independent = list(found[0].by) == ["data"]
    return {
        "blocks": len(table),
        "mean_rank": dict(zip(labels, mean_ranks(table, higher_is_better(metric)), strict=True)),
        "left_out": [label for label in known if label not in labels],
        "friedman_p": friedman(table) if independent else None,
        "critical_difference": critical_difference(len(labels), len(table)) if independent else None,
    }
