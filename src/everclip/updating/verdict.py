"""Show the verdict of an update as a page and as lines on a terminal."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from everclip.runs.words import listed, share
from everclip.updating.gate import lost

JSON_FILE, PAGE_FILE = "verdict.json", "verdict.html"
SHOWN = 40
"""Largest number of classes on the page, so that it stays one page."""
LISTED = 12
"""Largest number of classes that a sentence names."""
_TEMPLATES = Path(__file__).parents[1] / "assets" / "update"


def change(points: float) -> str:
    """Return points with their sign."""
    return f"{points:+.1f}".replace("-", "−")


def files(verdict: dict[str, Any]) -> dict[str, str]:
    """Return the verdict's two files, by name."""
    return {JSON_FILE: json.dumps(verdict, ensure_ascii=False, indent=2) + "\n", PAGE_FILE: page(verdict)}


def page(verdict: dict[str, Any]) -> str:
    """Return one HTML page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rows = [] if verdict["test"] is None else verdict["test"]["per_class"]
    ordered = sorted(rows, key=lambda row: row["after"] - (row["before"] or 0))
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals |= {
        "share": share,
        "change": change,
        "listed": partial(listed, most=LISTED),
        "counted": counted,
        "lost": lost,
    }
    template = environment.get_template("classes.html.j2" if "edit" in verdict else "verdict.html.j2")
    more = max(0, len(ordered) - SHOWN)
    return template.render(v=verdict, rows=ordered[:SHOWN], more=more, reliance=reliance(verdict))


def edit_lines(verdict: dict[str, Any]) -> list[str]:
    """Return what a terminal shows of an edit of the classes."""
    test, gate = verdict["test"], verdict["gate"]
    measured = "" if test is None else f": {share(test['before'])} % before, {share(test['after'])} % after"
    before, after = (len(verdict["classes"][when]) for when in ("before", "after"))
    return [
        f"{verdict['edit']}: {before} classes before, {after} after; nothing was trained",
        f"{gate['words']}{measured}",
        verdict["index"]["words"],
        *reliance(verdict),
    ]


def reliance(verdict: dict[str, Any]) -> list[str]:
    """Return what is said of probabilities and of unknown pictures."""
    return [verdict[key]["words"] for key in ("calibration", "unknown")]


def counted(images: dict[str, int]) -> str:
    """Say how many images an update was given, and how many it learns from or holds for checks."""
    left = images["given"] - images["learned"] - images["held"]
    more = f", {left} left out (known already, or not readable)" if left else ""
    return f"{images['given']} images given: {images['learned']} to learn from, {images['held']} held for checks{more}"


def lines(verdict: dict[str, Any]) -> list[str]:
    """Return what a terminal shows below the table of candidates."""
    told = [counted(verdict["images"]), *(f"rule: {line}" for line in verdict["rule"])]
    told.append(f"kept: {verdict['chosen']}, {verdict['reason']}")
    test, gate = verdict["test"], verdict["gate"]
    if test is not None:
        told.append(
            f"held-out images: {share(test['accuracy'])} % on {test['images']}; old classes"
            f" {share(test['old_before'])} before, {share(test['old_after'])} after; new"
            f" {share(test['new_after'])}"
        )
    told.append(verdict["index"]["words"])
    if gate["drop"] is None:
        told.append(f"old classes: {gate['words']}")
    elif gate["unmeasured"]:
        told.append(
            f"not measured, as there are no held-out images: old classes {listed(gate['unmeasured'], LISTED)}"
        )
    return told + reliance(verdict)
