"""Show a comparison to people and papers: tables on a terminal, CSV, LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everclip.compare.cells import amount
from everclip.compare.comparable import shown
from everclip.compare.verdict import STREAMS, higher_is_better
from everclip.metrics.retrieval import AT, WAYS
from everclip.metrics.stats import LEAST
from everclip.runs.words import several
from everclip.system.text import csv_text

Json = dict[str, Any]

_FRACTIONS = (
    *("last", "average", "forgetting", "backward_transfer", "forward_transfer", "zero_shot"),
    *("frozen_features", "macro", "worst_class.last", *STREAMS, "cross_domain.transfer_of_zero_shot"),
    "validation",
)
_RECALLS = tuple(f"{way}_recall_at_{k}" for way in WAYS for k in AT)
_KEPT = "kept MB"
_STILL = "°"
"""The mark of deterministic rows."""
_SPREADS = {
    "ci": "mean ± 95 % interval",
    "std": "mean ± standard deviation",
    "range": "mean [lowest, highest]",
}
_PM = " \\pm "
_TEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
WIDE = 100
"""Terminal width from which ranks and memory get columns."""


def _scale(metric: str) -> tuple[float, int]:
    """Return the factor of a metric's numbers, and their digits after the point."""
    if metric in _FRACTIONS + _RECALLS:
        return 100, 1
    return (1e-6, 2) if metric.endswith("_bytes") else (1, int(metric.endswith("_median_rank")))


def name(metric: str) -> str:
    """Return a metric with its unit: ``last %``, ``memory MB``, ``i2t@1 %`` (recall of texts by an image)."""
    if metric.endswith("_bytes"):
        return f"{metric.removesuffix('_bytes').replace('_', ' ')} MB"
    if metric in _RECALLS:
        way, _, k = metric.partition("_recall_at_")
        return f"{'i2t' if way == WAYS[0] else 't2i'}@{k} %"
    return stream_name(metric) + (" %" if metric in _FRACTIONS else "")


def stream_name(metric: str) -> str:
    """Return a metric as the literature writes it: ``any-time``, ``few-shot``, ``Transfer``."""
    whole, _, within = metric.partition(".")
    if whole == "by_frequency":
        return f"{within.removesuffix('.accuracy')}-shot"
    if whole == "cross_domain":
        return within.capitalize().replace("_", " ")
    return "any-time" if metric == "any_time" else metric.replace("_", " ").removesuffix(".last")


def ends(mean: Json, spread: str, random: bool = True) -> tuple[float, float] | None:
    """Return low and high of a mean's interval, standard deviation or range.

    None with too few values, and where nothing is random.
    """
    if not random or len(mean["values"]) < (2 if spread == "range" else LEAST):
        return None
    if spread == "range":
        return min(mean["values"]), max(mean["values"])
    if spread == "std":
        return mean["mean"] - mean["std"], mean["mean"] + mean["std"]
    return mean["low"], mean["high"]


def mean_text(
    mean: Json | None, metric: str, spread: str = "ci", random: bool = True, plus: str = " ± "
) -> str:
    """Return ``71.2 ± 0.8``, or ``71.2 [70.5, 72.1]``; ``71.2 (n=2)`` for two values, too few for an interval."""
    if mean is None:
        return "–"
    scale, digits = _scale(metric)
    text = f"{scale * mean['mean']:,.{digits}f}"
    around = ends(mean, spread, random)
    if around is None:
        return f"{text} (n=2)" if random and mean["n"] == 2 else text
    low, high = around
    if spread == "range":
        return f"{text} [{scale * low:,.{digits}f}, {scale * high:,.{digits}f}]"
    return (
        text
        if math.isclose(low, high, abs_tol=1e-12)
        else f"{text}{plus}{scale * (high - mean['mean']):,.{digits}f}"
    )


def kept_text(kept: Json | None) -> str:
    """Return megabytes of images and of state: ``0.48 + 13.11``."""
    if kept is None:
        return ""
    return f"{kept['image_bytes'] / 1e6:,.2f} + {kept['state_bytes'] / 1e6:,.2f}"


def difference_text(test: Json | None, metric: str) -> str:
    """Return ``-2.1 ± 0.9``; ``-2.1 ± 0.9 (n=3)`` where a row has repetitions that the other lacks."""
    if test is None:
        return ""
    scale, digits = _scale(metric)
    text = f"{scale * test['difference']:+,.{digits}f}"
    if test["high"] is not None and not math.isclose(test["low"], test["high"], abs_tol=1e-12):
        text += f" ± {scale * (test['high'] - test['low']) / 2:,.{digits}f}"
    return f"{text} (n={test['n']})" if test["left_out"] else text


def p_text(test: Json | None) -> str:
    """Return the corrected p; with a dagger where it is over test images."""
    if test is None:
        return ""
    if (p := test["p_holm"]) is None:
        return "–"
    return ("<0.001" if p < 0.001 else f"{p:.3f}") + ("†" if test["name"] == "mcnemar" else "")


def _counts(comparison: Json) -> list[int]:
    return sorted({len(row["repetitions"]) for row in _rows(comparison) if not row["reference"]})


def _rows(comparison: Json) -> list[Json]:
    return [row for section in comparison["sections"] for row in section["rows"]]


def _place(section: Json) -> str:
    return "  ".join(f"{key} = {shown(value)}" for key, value in section["by"].items())


def _cells(comparison: Json, section: Json, row: Json, wide: bool) -> list[tuple[str, str]]:
    """Return the heading and the text of each cell of a row."""
    first, unit, rows = comparison["metrics"][0], comparison["equal"], _rows(comparison)
    cells = [("method", row["label"] + ("" if row["random"] else _STILL))]
    if len(_counts(comparison)) > 1:
        cells.append(("n", str(len(row["repetitions"]))))
    for metric in comparison["metrics"]:
        mean = row["metrics"][metric]
        cells.append((name(metric), mean_text(mean, metric, comparison["spread"], row["random"])))
    if wide:
        cells.append((_KEPT, kept_text(row["kept"])))
    if unit:
        number, heading = amount(row.get("cost", 0.0), unit)
        cells.append((heading, number if "cost" in row else ""))
    if any(other["test"] for other in rows):
        base = row["label"] == section["against"]
        cells.append(("difference", "reference" if base else difference_text(row["test"], first)))
        cells.append(("p", p_text(row["test"])))
    if wide and any(other["rank"] is not None for other in rows):
        cells.append(("rank", "" if row["rank"] is None else f"{row['rank']:.1f}"))
    return cells


def show(comparison: Json, console: Console) -> None:
    """Print the tables with their legend."""
    wide, sections = console.width >= WIDE, comparison["sections"]
    tables = [[_cells(comparison, section, row, wide) for row in section["rows"]] for section in sections]
    columns = zip(*(row for rows in tables for row in rows), strict=True)
    widths = [max(len(text) for cell in column for text in cell) for column in columns]
    widths[0] = max(12, min(widths[0], console.width - sum(width + 3 for width in widths[1:])))
    needed = sum(widths) + 3 * len(widths)  # numbers are never cut off, as at the 80 columns of a pipe
    room = console if needed <= console.width else Console(file=console.file, width=needed)
    console.print(escape(_title(comparison)), highlight=False)
    for section, rows in zip(sections, tables, strict=True):
        console.print(f"\n{escape(_place(section))}".rstrip(), style="bold", highlight=False)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index, (head, _) in enumerate(rows[0]):
            table.add_column(head, justify="left" if index == 0 else "right", width=widths[index])
        last_rival = sum(not row["reference"] for row in section["rows"]) - 1
        for index, row in enumerate(rows):
            texts = [escape(text) for _, text in row]
            table.add_row(*texts, end_section=index == last_rival and index < len(rows) - 1)
        room.print(table)
        if not wide:  # no room for the column
            kept = [f"{row['label']} {text}" for row in section["rows"] if (text := kept_text(row["kept"]))]
            console.print(escape(f"{_KEPT}: {', '.join(kept)}"), highlight=False)
    console.print()
    for line in legend(comparison, wide):
        console.print(escape(line), highlight=False)


def _title(comparison: Json) -> str:
    counts = _counts(comparison)
    over = " and ".join(comparison["over"])
    text = several(comparison["runs"], "run")
    if not counts or counts[-1] < 2:
        return text
    n, spread = f"{counts[0]}" if len(counts) == 1 else "n", comparison["spread"]
    if counts[-1] >= LEAST or spread == "range":
        return f"{text}; {_SPREADS[spread]} over {n} values of {over}"
    missing = "an interval" if spread == "ci" else "a deviation"
    return f"{text}; mean over {n} values of {over}, too few for {missing}"


def legend(comparison: Json, wide: bool) -> list[str]:
    """Explain the columns and the ranks, one line each; the column of ranks only on a wide terminal, which has it."""
    rows, lines = _rows(comparison), []
    if any(not row["random"] for row in rows):
        lines.append(f"{_STILL}: deterministic, so every seed gives the same")
    if any(row["kept"] for row in rows):
        lines.append(f"{_KEPT}: kept besides the model: images + state of the method")
    if tests := [row["test"] for row in rows if row["test"]]:
        metric = name(comparison["metrics"][0]).removesuffix(" %")
        bases = {section["against"] for section in comparison["sections"] if section["against"]}
        each = f"{comparison['against'] or 'the best'} of each table"
        base = f"to {bases.pop() if len(bases) == 1 else each}"
        family = len([test for test in tests if test["p"] is not None])
        how = f"difference of {metric} {base}; p corrected for {family} comparisons (Holm)"
        lines.append(how if family > 1 else how.partition("; p corr")[0])
    kinds = {test["name"] for test in tests}
    if "paired t" in kinds:
        lines.append(f"p: paired t over {' and '.join(comparison['over'])}")
    if "mcnemar" in kinds:
        lines.append(
            "†: one run each, exact McNemar test over test images, which says nothing about other seeds"
        )
    over = " and ".join(comparison["over"])
    if any(test["left_out"] for test in tests):
        lines.append(
            f"difference (n=...): over the n values of {over} that both rows have; their means are over more"
        )
    if wide and any(_fewer(section) for section in comparison["sections"]):
        lines.append(f"rank: over the values of {over} that all methods of a table have")
    if overall := comparison["ranks"]:
        ranks = sorted(overall["mean_rank"].items(), key=lambda item: item[1])
        text = ", ".join(f"{label} {rank:.1f}" for label, rank in ranks)
        lines.append(f"mean rank over the {overall['blocks']} tables: {text}")
        if overall["left_out"]:
            lines.append(f"not ranked, as not in every table: {', '.join(overall['left_out'])}")
        if overall["friedman_p"] is not None:
            lines.append(
                f"Friedman p = {overall['friedman_p']:.3f}; ranks further apart than"
                f" {overall['critical_difference']:.1f} differ at 0.05 (Nemenyi)"
            )
    return lines


def _fewer(section: Json) -> bool:
    """Return whether the ranks of a table are over fewer repetitions than some of its means."""
    ranked = [row for row in section["rows"] if row["rank"] is not None and row["random"]]
    return any(len(row["repetitions"]) > section["ranked"] for row in ranked)


def as_csv(comparison: Json) -> str:
    """Return one line per row, with plain numbers (fractions stay fractions)."""
    sections = comparison["sections"]
    rows = [_named_cells(comparison, section, row) for section in sections for row in section["rows"]]
    return csv_text([head for head, _ in rows[0]], [[value for _, value in row] for row in rows])


def _named_cells(comparison: Json, section: Json, row: Json) -> list[tuple[str, Any]]:
    """Return the column and the value of each cell of a row of the CSV file."""
    cells: list[tuple[str, Any]] = [(key, shown(value)) for key, value in section["by"].items()]
    cells += [("label", row["label"]), ("method", row["method"]), ("n", len(row["repetitions"]))]
    for metric in comparison["metrics"]:
        mean = row["metrics"][metric]
        around = None if mean is None else ends(mean, comparison["spread"], row["random"])
        values = (mean["mean"] if mean else None, *(around or (None, None)))
        cells += zip((metric, f"{metric}_low", f"{metric}_high"), values, strict=True)
    cells += [(f"kept_{part}", (row["kept"] or {}).get(part)) for part in ("image_bytes", "state_bytes")]
    cells += [("cost", row.get("cost"))] if comparison["equal"] else []
    test = row["test"] or {}
    cells += [("rank", row["rank"]), ("against", section["against"] if test else None)]
    told = {"test": "name", "test_n": "n"}
    told |= {key: key for key in ("difference", "low", "high", "p", "p_holm", "sign_flip")}
    return cells + [(column, test.get(key)) for column, key in told.items()]


def as_latex(comparison: Json) -> str:
    """Return a tabular for booktabs with a block of rows per section; the best mean of a block is bold."""
    metrics, by = comparison["metrics"], comparison["by"]
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}", "\\toprule"]
    lines.append(" & ".join(["method", *map(_tex, map(name, metrics)), _KEPT]) + " \\\\")
    for section in comparison["sections"]:
        lines.append("\\midrule")
        if by:
            title = _tex(_place(section))
            lines += [f"\\multicolumn{{{2 + len(metrics)}}}{{l}}{{{title}}} \\\\", "\\midrule"]
        best = [_best(section["rows"], metric) for metric in metrics]
        for row in section["rows"]:
            cells = [_tex(row["label"]) + ("" if row["random"] else r"$^\circ$")]
            for metric, top in zip(metrics, best, strict=True):
                mean = row["metrics"][metric]
                number = mean_text(mean, metric, comparison["spread"], row["random"], _PM)
                number = number.replace(",", "{,}").replace("{,} ", ",\\ ")
                bold = mean is not None and not row["reference"] and mean["mean"] == top
                cells.append("--" if mean is None else f"$\\mathbf{{{number}}}$" if bold else f"${number}$")
            kept = kept_text(row["kept"]).replace(",", "{,}")
            cells.append(f"${kept}$" if kept else "--")
            lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _best(rows: Sequence[Json], metric: str) -> float:
    means = [row["metrics"][metric] for row in rows if not row["reference"]]
    pick = max if higher_is_better(metric) else min
    return pick((mean["mean"] for mean in means if mean), default=math.nan)


def _tex(text: str) -> str:
    """Return the text escaped for LaTeX."""
    return text.translate(_TEX)
