"""Tell what must be alike for two runs' numbers to be comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everclip.report.read import RunData
from everclip.report.words import several

FACTS = (
    "data",
    "scenario",
    "model",
    "image_size",
    "templates",
    "classes",
    "test_images",
    "validation",
    "smoke",
)
"""The facts, the most telling first."""


def facts(run: RunData) -> dict[str, Any]:
    """Return what must be equal for two runs' numbers to be comparable; None where the run does not say."""
    values = {key: run.fact(key) for key in FACTS}
    values["validation"] = run.results.get("validation", run.fact("scenario.validation")) or "none"
    values["smoke"] = bool(values["smoke"])
    values["classes"] = tuple(sorted(run.classes)) or None
    values["test_images"] = sum(run.test_counts) or None
    templates = run.results.get("templates")
    values["templates"] = tuple(templates) if templates else None
    return values


def names(of: Sequence[dict[str, Any]]) -> list[str]:
    """A name per setting: its data, and of what else differs as much as it takes to tell them apart."""
    found = [[str(known["data"] or "unknown data")] for known in of]
    for key in FACTS[1:]:
        if len({tuple(name) for name in found}) == len(found):
            break
        if len({repr(known[key]) for known in of}) > 1:
            found = [[*name, fact(key, known[key])] for name, known in zip(found, of, strict=True)]
    return [", ".join(name) for name in found]


def fact(key: str, value: Any) -> str:
    """A fact in words; lists by their length."""
    if value is None:
        return f"{key.replace('_', ' ')} unknown"
    if isinstance(value, tuple):
        return several(len(value), {"templates": "template", "classes": "class"}[key])
    words = {
        "image_size": f"{value} px",
        "test_images": f"{value} test images",
        "validation": "test images" if value == "none" else f"validation share {value}",
        "smoke": "trial runs" if value else "full runs",
    }
    return words.get(key, str(value))
