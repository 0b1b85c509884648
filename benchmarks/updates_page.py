"""The page of the benchmark of updates in a row, from its results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from benchmarks.jobs import machines
from everclip.updating.candidates import NAMES

Json = dict[str, Any]
TITLES = {
    "caltech50": "caltech50, ten updates of five classes",
    "emoji": "emoji, ten updates of five classes (the first 50 of 100)",
    "pacs": "part of PACS, four updates of one domain",
}
ROWS = {
    "auto": "**automatic choice**",
    **{name: f"fixed: {name}" for name in NAMES},
    "joint": "joint training (all images at once)",
    "ridge on all images": "ridge on all images at once",
    "plain fine-tuning": "plain fine-tuning, no exemplars",
}
ABOUT = (
    "`EVERCLIP_DATA=... python -m benchmarks.updates` (one thread on {}; one seed). Model `lite` at 96 px,"
    " which knows no class at first. Two exemplars per class are kept, one of them only for checks. *Last* is"
    " the accuracy in % on the test images of all classes after the last update, *average* its mean over the"
    " updates. *Forgetting* is by how many points an update's test images end below their best, on average."
    " *Kept* is the accuracy of the encoder after the last update as a zero-shot classifier, in % of that of the"
    " pretrained one, on one picture of each ImageNet class. Candidates are never compared on test images."
)
FROZEN = ("ridge", "layers", "means", "nothing", "ridge on all images")
"""Choices that train nothing, so that their encoder is the pretrained one."""


def page(results: Mapping[tuple[str, str], Json]) -> str:
    """The page in Markdown."""
    by_name = {f"{setting} {choice}": row for (setting, choice), row in results.items()}
    parts = [
        "# Updates in a row",
        "",
        *textwrap.wrap(ABOUT.format(machines(by_name)), 118),
    ]
    for setting, title in TITLES.items():
        there = {choice: results[setting, choice] for choice in ROWS if (setting, choice) in results}
        if there:
            parts += ["", f"## {title}", "", *_table(there), *_said(there)]
        missing = [ROWS[choice].strip("*") for choice in ROWS if choice not in there]
        if missing:
            line = f"Not run yet (the same command continues): {'; '.join(missing)}."
            parts += ["", *textwrap.wrap(line, 118, break_on_hyphens=False)]
    return "\n".join(parts) + "\n"


def _table(there: Mapping[str, Json]) -> list[str]:
    lines = [
        "| choice | last | average | forgetting | kept | CPU s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    pretrained = max(row["zero_shot"] for choice, row in there.items() if choice in FROZEN)
    for choice, row in there.items():
        lost = "–" if row["forgetting"] is None else f"{100 * row['forgetting']:z.1f}"
        average = "–" if len(row["updates"]) == 1 else f"{100 * row['average']:.1f}"
        kept = 100 * row["zero_shot"] / pretrained
        lines.append(
            f"| {ROWS[choice]} | {100 * row['last']:.1f} | {average} | {lost} | {kept:.1f} | {row['cpu_seconds']:.0f} |"
        )
    return lines


def _said(there: Mapping[str, Json]) -> list[str]:
    """How the automatic choice compares with the best fixed one, and what it chose."""
    fixed = {choice: there[choice] for choice in NAMES if choice in there}
    if "auto" not in there or not fixed:
        return []
    best = max(fixed, key=lambda choice: fixed[choice]["last"])
    mean = max(fixed, key=lambda choice: fixed[choice]["average"])
    short = 100 * (fixed[mean]["average"] - there["auto"]["average"])
    behind = 100 * (fixed[best]["last"] - there["auto"]["last"])
    chosen = [row["chosen"] for row in there["auto"]["updates"]]
    counts = ", ".join(f"{name} {chosen.count(name)} times" for name in dict.fromkeys(chosen))
    line = f"The automatic choice was {counts}. "
    if abs(behind) > 0.05:
        way = "behind" if behind > 0 else "ahead"
        line += f"The best fixed choice is {best}; the automatic one ends {abs(behind):.1f} points {way}."
    else:
        line += f"It ends level with the best fixed choice ({best})."
    if short > 0.05:
        line += f" On average over the updates {mean} is {short:.1f} points better."
    return ["", *textwrap.wrap(line, 118, break_on_hyphens=False)]
