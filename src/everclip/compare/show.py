"""Show a comparison to people and papers: tables on a terminal, CSV, LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everclip.compare.cells import shown_any
from everclip.compare.verdict import STREAMS, higher_is_better
from everclip.metrics.retrieval import AT, WAYS
from everclip.metrics.stats import LEAST
from everclip.system.text import csv_text

Json = dict[str, Any]

_FRACTIONS = (
    *("last", "average", "forgetting", "backward_transfer", "forward_transfer", "zero_shot"),
    *("macro", "worst_class.last", *STREAMS),
)
_RECALLS = tuple(f"{way}_recall_at_{k}" for way in WAYS for k in AT)
_UNITS = {"bytes": "MB", "steps": "steps", "samples": "samples"}
_KEPT = "kept MB"
_STILL = "°"
"""Mark of deterministic rows."""
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
"""Width of a terminal above which ranks and memory get columns."""


def _scale(metric: str) -> tuple[float, int]:
    """Return the factor of a number, and its digits after the point."""
    if metric in _FRACTIONS + _RECALLS:
        return 100, 1
    return (1e-6, 2) if metric.endswith("_bytes") else (1, 0)


def name(metric: str) -> str:
    """Return a metric with its unit: ``last %``, ``memory MB``, ``i2t@1 %`` (recall of texts by an image)."""
    if metric.endswith("_bytes"):
        return f"{metric.removesuffix('_bytes').replace('_', ' ')} MB"
    if metric in _RECALLS:
        way, _, k = metric.partition("_recall_at_")
        return f"{'i2t' if way == WAYS[0] else 't2i'}@{k} %"
    return stream_name(metric) + (" %" if metric in _FRACTIONS else "")


def stream_name(metric: str) -> str:
    """Return a metric as its field writes it: ``any-time``, ``few-shot``, ``Transfer`` over several data sets."""
    whole, _, within = metric.partition(".")
    if whole == "by_frequency":
        return f"{within.removesuffix('.accuracy')}-shot"
    if whole == "cross_domain":
        return within.capitalize()
    return "any-time" if metric == "any_time" else metric.replace("_", " ").removesuffix(".last")


def ends(mean: Json, spread: str, random: bool = True) -> tuple[float, float] | None:
    """Return the spread around a mean: its interval, a standard deviation to each side, or the lowest and the highest
    value. None where there is none: of too few values, and where nothing is random."""
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
    """Return ``71.2 ± 0.8``, or ``71.2 [70.5, 72.1]``; ``71.2 (n=2)`` where two values give no more."""
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
    return text if high == low else f"{text}{plus}{scale * (high - mean['mean']):,.{digits}f}"


def kept_text(kept: Json | None) -> str:
    """Return megabytes of images and of state: ``0.48 + 13.11``."""
    if kept is None:
        return ""
    return f"{kept['image_bytes'] / 1e6:,.2f} + {kept['state_bytes'] / 1e6:,.2f}"


def difference_text(test: Json | None, metric: str, plus: str = " ± ") -> str:
    """Return ``-2.1 ± 0.9``."""
    if test is None:
        return ""
    scale, digits = _scale(metric)
    text = f"{scale * test['difference']:+,.{digits}f}"
    if test["high"] is None or test["high"] == test["low"]:
        return text
    return f"{text}{plus}{scale * (test['high'] - test['low']) / 2:,.{digits}f}"


def p_text(test: Json | None) -> str:
    """Return the corrected p; a dagger where it is over test images."""
    if test is None:
        return ""
    p = test["p_holm"]
    if p is None:
        return "–"
    return ("<0.001" if p < 0.001 else f"{p:.3f}") + ("†" if test["name"] == "mcnemar" else "")


def _counts(comparison: Json) -> list[int]:
    return sorted({len(row["repetitions"]) for row in _rows(comparison) if not row["reference"]})


def _rows(comparison: Json) -> list[Json]:
    return [row for section in comparison["sections"] for row in section["rows"]]


def _place(section: Json) -> str:
    return "  ".join(f"{key} = {shown_any(value)}" for key, value in section["by"].items())


def _columns(comparison: Json, section: Json, wide: bool) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of one section's table."""
    first, counts = comparison["metrics"][0], _counts(comparison)
    head = ["method", *(["n"] if len(counts) > 1 else []), *map(name, comparison["metrics"])]
    head += [_KEPT] if wide else []
    unit = comparison["equal"]
    head += [_UNITS[unit]] if unit else []
    tested = any(row["test"] for row in _rows(comparison))
    head += ["difference", "p"] if tested else []
    ranked = wide and any(row["rank"] is not None for row in _rows(comparison))
    head += ["rank"] if ranked else []
    body: list[list[str]] = []
    for row in section["rows"]:
        cells = [
            row["label"] + ("" if row["random"] else _STILL),
            *([str(len(row["repetitions"]))] if len(counts) > 1 else []),
        ]
        cells += [
            mean_text(row["metrics"][metric], metric, comparison["spread"], row["random"])
            for metric in comparison["metrics"]
        ]
        if wide:
            cells.append(kept_text(row["kept"]))
        if unit:
            cost = row.get("cost")
            cells.append("" if cost is None else f"{cost / 1e6:,.2f}" if unit == "bytes" else f"{cost:,.0f}")
        if tested:
            base = row["label"] == section["against"]
            cells += ["reference" if base else difference_text(row["test"], first), p_text(row["test"])]
        if ranked:
            cells.append("" if row["rank"] is None else f"{row['rank']:.1f}")
        body.append(cells)
    return head, body


def show(comparison: Json, console: Console) -> None:
    """Tables with their legend."""
    tables = [_columns(comparison, section, console.width >= WIDE) for section in comparison["sections"]]
    every = [row for head, body in tables for row in [head, *body]]
    widths = [max(len(row[column]) for row in every) for column in range(len(every[0]))]
    widths[0] = max(12, min(widths[0], console.width - sum(width + 3 for width in widths[1:])))
    console.print(escape(_title(comparison)), highlight=False)
    for section, (head, body) in zip(comparison["sections"], tables, strict=True):
        console.print(f"\n{escape(_place(section))}".rstrip(), style="bold", highlight=False)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index, column in enumerate(head):
            table.add_column(column, justify="left" if index == 0 else "right", width=widths[index])
        last_rival = sum(not row["reference"] for row in section["rows"]) - 1
        for index, cells in enumerate(body):
            table.add_row(*map(escape, cells), end_section=index == last_rival and index < len(body) - 1)
        console.print(table)
        if console.width < WIDE:  # where the column finds no room
            kept = [f"{row['label']} {text}" for row in section["rows"] if (text := kept_text(row["kept"]))]
            console.print(escape(f"{_KEPT}: {', '.join(kept)}"), highlight=False)
    console.print()
    for line in legend(comparison):
        console.print(escape(line), highlight=False)


def _title(comparison: Json) -> str:
    counts = _counts(comparison)
    over = " and ".join(comparison["over"])
    text = f"{comparison['runs']} run{'s' * (comparison['runs'] > 1)}"
    if counts and counts[-1] > 1:
        n = f"{counts[0]}" if len(counts) == 1 else "n"
        few = counts[-1] < LEAST and comparison["spread"] != "range"
        text += f"; {'mean' if few else _SPREADS[comparison['spread']]} over {n} values of {over}"
        text += (
            f", too few for {'an interval' if comparison['spread'] == 'ci' else 'a deviation'}" if few else ""
        )
    return text


def legend(comparison: Json) -> list[str]:
    """Explain the columns, and what the ranks say: one line each."""
    tests = [row["test"] for row in _rows(comparison) if row["test"]]
    kinds = {test["name"] for test in tests}
    metric = name(comparison["metrics"][0]).removesuffix(" %")
    lines: list[str] = []
    if any(not row["random"] for row in _rows(comparison)):
        lines.append(f"{_STILL}: deterministic, so every seed gives the same")
    if any(row["kept"] for row in _rows(comparison)):
        lines.append(f"{_KEPT}: kept beside the model: images + state of the method")
    bases = {section["against"] for section in comparison["sections"] if section["against"]}
    if tests:
        base = f"to {bases.pop()}" if len(bases) == 1 else "to the best of each table"
        family = len([test for test in tests if test["p"] is not None])
        how = f"difference of {metric} {base}; p corrected for {family} comparisons (Holm)"
        lines.append(how if family > 1 else how.partition("; p corr")[0])
    if "paired t" in kinds:
        lines.append(f"p: paired t over {' and '.join(comparison['over'])}")
    if "mcnemar" in kinds:
        lines.append(
            "†: one run each, exact McNemar test over test images, which says nothing about other seeds"
        )
    overall = comparison["ranks"]
    if overall:
        ranks = sorted(overall["mean_rank"].items(), key=lambda item: item[1])
        text = ", ".join(f"{label} {rank:.1f}" for label, rank in ranks)
        lines.append(f"mean rank over the {overall['blocks']} tables: {text}")
        if overall["friedman_p"] is not None:
            lines.append(
                f"Friedman p = {overall['friedman_p']:.3f}; ranks further apart than"
                f" {overall['critical_difference']:.1f} differ at 0.05 (Nemenyi)"
            )
    return lines


def as_csv(comparison: Json) -> str:
    """Return one line per row, with plain numbers (fractions stay fractions)."""
    metrics = comparison["metrics"]
    test = ["difference", "low", "high", "p", "p_holm", "sign_flip"]
    head = [*comparison["by"], "label", "method", "n"]
    head += [f"{metric}{part}" for metric in metrics for part in ("", "_low", "_high")]
    head += ["kept_image_bytes", "kept_state_bytes"]
    head += ["cost"] if comparison["equal"] else []
    rows: list[list[Any]] = []
    for section in comparison["sections"]:
        for row in section["rows"]:
            cells = [
                *map(shown_any, section["by"].values()),
                row["label"],
                row["method"],
                len(row["repetitions"]),
            ]
            for metric in metrics:
                mean = row["metrics"][metric]
                around = None if mean is None else ends(mean, comparison["spread"], row["random"])
                cells += [mean["mean"] if mean else None, *(around or (None, None))]
            kept = row["kept"] or {}
            cells += [kept.get("image_bytes"), kept.get("state_bytes")]
            cells += [row.get("cost")] if comparison["equal"] else []
            result = row["test"] or {}
            against = section["against"] if row["test"] else None
            rows.append(
                [*cells, row["rank"], against, result.get("name"), *(result.get(key) for key in test)]
            )
    return csv_text([*head, "rank", "against", "test", *test], rows)


def as_latex(comparison: Json) -> str:
    """Return a tabular for booktabs, a block of rows for each section; the best mean of a block is bold."""
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
    means = [
        row["metrics"][metric]["mean"] for row in rows if row["metrics"][metric] and not row["reference"]
    ]
    return (max if higher_is_better(metric) else min)(means, default=math.nan)


def _tex(text: str) -> str:
    """Return the text as LaTeX prints it; a backslash in it is no command."""
    return text.translate(_TEX)
