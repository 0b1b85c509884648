"""The page of the benchmark of an index of embeddings, from its results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from benchmarks.jobs import machines

Json = dict[str, Any]
TITLES = {
    "caltech50": "caltech50, ten updates of five classes",
    "cifar100": "CIFAR-100 with 50 pictures per class, ten updates of ten classes",
}
ABOUT = (
    "`EVERCLIP_DATA=... python -m benchmarks.index` (one thread on {}; one seed; with other work running, so"
    " wall-clock times say little). Model `lite` at 96 px, which knows no class at first. The index has all"
    " training pictures of all classes, embedded before the first update; the queries are test pictures, spread"
    " over all classes. *Recall@10* is the fraction of the old query's ten nearest in the old index that the new"
    " query finds too, in %. *Same class* is how many of the ten found are of the query's class, in %; for an"
    " index that was embedded again, it says whether the new encoder searches better. *Accuracy* is on the test"
    " pictures of all classes learned."
)
CHOICES = {
    "keep": "`--index keep`",
    "adapt": "`--index adapt --method trained`",
    "plain": "plain fine-tuning, no exemplars",
}


def page(results: Mapping[str, Json]) -> str:
    """The page in Markdown."""
    parts = [
        "# An index of embeddings",
        "",
        *textwrap.wrap(ABOUT.format(machines(results) or "no machine yet"), 118),
    ]
    for name, title in TITLES.items():
        there = {choice: results[f"{name}-{choice}"] for choice in CHOICES if f"{name}-{choice}" in results}
        parts += ["", f"## {title}", ""]
        parts += _table(there) if there else []
        missing = [CHOICES[choice] for choice in CHOICES if choice not in there]
        if missing:
            parts += ["", f"Not run yet (the same command continues): {'; '.join(missing)}."]
    return (
        "\n".join([*parts, *_embedding(results), *_searching(results.get("search"))]).replace(
            "\n\n\n", "\n\n"
        )
        + "\n"
    )


def _table(there: Mapping[str, Json]) -> list[str]:
    lines = [
        "| after ten updates | accuracy | Recall@10 | same class | after one: Recall@10 | CPU s of the updates |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for choice, result in there.items():
        first, last = result["updates"][0], result["updates"][-1]
        spent = f"{sum(row['cpu_seconds'] for row in result['updates']):.0f}"
        start = f"{100 * last['accuracy']:.1f}"
        for key, how in (
            ("plain", "" if last["valid"] else ", old index as it is"),
            ("mapped", ", with the map"),
        ):
            if last[key] is not None:
                lines.append(
                    f"| {CHOICES[choice]}{how} | {start} | {_numbers(last[key])} | {_first(first, key)} | {spent} |"
                )
        if again := result["rebuilt"]:
            lines.append(
                f"| {CHOICES[choice]}, embedded again | {start} | – | {100 * again['same_class']:.1f} | – |"
                f" {spent} + {again['cpu_seconds']:.0f} |"
            )
    some = next(iter(there.values()))
    return [*lines, "", f"{some['embeddings']:,} embeddings, {some['queries']} queries."]


def _numbers(found: Json) -> str:
    return f"{100 * found['recall']:.1f} | {100 * found['same_class']:.1f}"


def _first(row: Json, key: str) -> str:
    return "–" if row[key] is None else f"{100 * row[key]['recall']:.1f}"


def _embedding(results: Mapping[str, Json]) -> list[str]:
    lines = ["", "## Embedding pictures of CIFAR-100", ""]
    rows = [row for name, row in results.items() if name.startswith("embed-")]
    for row in rows:
        equal = "bit for bit equal" if row["bit_equal"] else "NOT EQUAL"
        text = (
            f"{row['pictures']:,} pictures: {row['per_second']:.0f} per second wall-clock, at a load of"
            f" {row['load']:g} on two cores. Killed with -9 {row['killed']} times and resumed: {equal}."
        )
        lines += [*textwrap.wrap(text, 118), ""]
    if not any(row["pictures"] == 60_000 for row in rows):
        lines.append("All 60,000 were not embedded yet; `--parts embed` does it.")
    if row := results.get("speed"):
        clock, spent = (
            row[f"embed_per_{unit}"] / row[f"bare_per_{unit}"] for unit in ("second", "cpu_second")
        )
        text = (
            f"{row['timed']:,} of them, compared with the bare encoder on decoded pictures (in turn, the best of three,"
            f" at a load of {row['load']:g}): {row['embed_per_second']:.0f} and {row['bare_per_second']:.0f} per second"
            f" wall-clock ({100 * clock:.0f} %), {row['embed_per_cpu_second']:.0f} and"
            f" {row['bare_per_cpu_second']:.0f} per CPU second ({100 * spent:.0f} %). The difference is decoding and"
            f" resizing, in separate threads, and the fingerprint, which is computed once. The goal of 90 % wall-clock"
            f" is {'met' if clock >= 0.9 else 'missed'}."
        )
        lines += textwrap.wrap(text, 118)
    return lines


def _searching(row: Json | None) -> list[str]:
    lines = ["", "## Searching", ""]
    if row is None:
        return [*lines, "Not run yet (the same command continues)."]
    ratios = [row[f"search_{unit}"] / row[f"product_{unit}"] for unit in ("seconds", "cpu_seconds")]
    text = (
        f"{row['embeddings']:,} synthetic embeddings of width {row['width']} in {-(-row['embeddings'] // 4096)} mapped"
        f" shards that the system has in memory take {1000 * row['search_seconds']:.0f} ms per query wall-clock. One"
        f" matrix product of the same numbers in one array takes {1000 * row['product_seconds']:.0f} ms"
        f" ({ratios[0]:.2f} times). CPU times are {1000 * row['search_cpu_seconds']:.0f} and"
        f" {1000 * row['product_cpu_seconds']:.0f} ms ({ratios[1]:.2f} times). The first query after the"
        f" folder is opened takes {1000 * row['first_cpu_seconds']:.0f} ms of CPU time, as pages are looked up. Each is"
        f" the best of several. The result {'equals' if row['same_as_a_whole_sort'] else 'DIFFERS FROM'} that of a"
        " sort of all cosines."
    )
    return [*lines, *textwrap.wrap(text, 118)]
