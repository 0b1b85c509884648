"""Check that results.json, which may come from others or be damaged, is as docs/results.md says. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everclip.metrics.retrieval import AT, WAYS
from everclip.system.arrays import MOST_ROWS
from everclip.system.kinds import (
    AMOUNT,
    CHANGE,
    COUNT,
    SHARE,
    Kind,
    listed,
    or_null,
    table,
    text,
    truth,
    whole,
)
from everclip.system.reading import Unreadable, read_json, readable
from everclip.system.text import cleaned

MOST_CLASSES, MOST_TASKS = 100_000, 10_000

_NUMBERS = ("zero_shot", "after_learning", "last")
_CLASS = table(
    {"class": text, "task": whole(MOST_TASKS - 1), "n": COUNT, **dict.fromkeys(_NUMBERS, or_null(SHARE))}
)
_FORK = table({"run": text, "stage": whole(MOST_TASKS), "config": text})
_WORST = table({"class": text, "last": SHARE})
_GROUP = table({"classes": COUNT, "accuracy": or_null(SHARE)})
_GROUPS = table(
    {**dict.fromkeys(("many", "medium", "few"), _GROUP), **dict.fromkeys(("many_above", "few_below"), COUNT)}
)
_WAY = table({**{f"recall_at_{k}": SHARE for k in AT}, "median_rank": AMOUNT})
_SEARCHED = table({"images": COUNT, "captions": COUNT, **dict.fromkeys(WAYS, _WAY)})
_RETRIEVED = table({"tasks": listed(or_null(_SEARCHED), MOST_TASKS), "together": _SEARCHED})
_SHARES = listed(SHARE, MOST_TASKS)
_KNOWN_SHARES = listed(or_null(SHARE), MOST_TASKS)

_CROSS = table(
    {
        "task_id": text,
        **dict.fromkeys(("transfer", "transfer_of_zero_shot"), or_null(SHARE)),
        **dict.fromkeys(("average", "last"), SHARE),
        "matrix": listed(_KNOWN_SHARES, MOST_TASKS),
    }
)

SCHEMA: dict[str, Kind] = {
    "schema": lambda value: value == 1,
    **dict.fromkeys(("everclip", "finished", "method", "data", "model", "scenario"), text),
    **dict.fromkeys(("train_captions", "precision", "tune"), text),
    **dict.fromkeys(("template_set", "tuned_on"), or_null(text)),
    **dict.fromkeys(("smoke", "center"), truth),
    **dict.fromkeys(("last", "average"), SHARE),
    "zero_shot": or_null(SHARE),
    **dict.fromkeys(("forgetting", "backward_transfer", "forward_transfer"), or_null(CHANGE)),
    **dict.fromkeys(("seconds", "memory_bytes", "state_bytes", "peak_memory_bytes", "cache_bytes"), AMOUNT),
    "kept_bytes": AMOUNT,
    **dict.fromkeys(("optimizer_steps", "samples_seen", "skipped_steps", "trainable_parameters"), COUNT),
    **dict.fromkeys(("seed", "image_size"), COUNT),
    "memory_budget": lambda value: value == "all" or COUNT(value),
    "memory_per_class": or_null(COUNT),
    "images_per_second": or_null(AMOUNT),
    "validation": or_null(SHARE),
    **dict.fromkeys(("macro", "any_time"), or_null(SHARE)),
    "worst_class": or_null(_WORST),
    "by_frequency": or_null(_GROUPS),
    "cross_domain": or_null(_CROSS),
    **dict.fromkeys(("duplicates", "train_copies"), or_null(COUNT)),
    "forked_from": or_null(_FORK),
    "tasks": lambda value: bool(value) and listed(text, MOST_TASKS)(value),
    **dict.fromkeys(("classes", "templates"), listed(text, MOST_CLASSES)),
    "class_labels": listed(COUNT, MOST_CLASSES),
    "test_counts": listed(COUNT, MOST_TASKS),
    "accuracy_after_stage": _SHARES,
    "task_mean_after_stage": _KNOWN_SHARES,
    "zero_shot_after_stage": or_null(_SHARES),
    "zero_shot_per_task": or_null(_KNOWN_SHARES),
    "frozen_features": or_null(SHARE),
    "frozen_features_after_stage": or_null(_SHARES),
    "frozen_features_methods": or_null(listed(text, MOST_TASKS)),
    "matrix": listed(_KNOWN_SHARES, MOST_TASKS),
    "per_class": listed(
        lambda row: _CLASS(row) and (row["after_learning"] is None) == (row["last"] is None), MOST_CLASSES
    ),
    "skipped_images": listed(text, 10**6),
    "retrieval": table({"zero_shot": _RETRIEVED, "after_stage": listed(_RETRIEVED, MOST_TASKS)}),
    **{f"{way}_recall_at_{k}": SHARE for way in WAYS for k in AT},
    **{f"{way}_median_rank": AMOUNT for way in WAYS},
}
"""What the value of each key must be; other keys are ignored."""

LEAST = ("schema", "method", "last")
"""Keys that comparisons need."""
WHOLE = (
    *("method", "data", "model", "memory_budget", "memory_bytes", "last", "average", "zero_shot", "seconds"),
    *("forgetting", "tasks", "skipped_images", "accuracy_after_stage", "zero_shot_after_stage", "matrix"),
    "per_class",
)
"""Keys that a run's table and page need."""
_A_TASK = (
    *("accuracy_after_stage", "task_mean_after_stage", "zero_shot_after_stage", "zero_shot_per_task"),
    *("matrix", "test_counts", "frozen_features_after_stage", "frozen_features_methods"),
)


def load(path: Path, needed: Sequence[str] = WHOLE) -> dict[str, Any]:
    """Return the results in a file, their texts printable.

    Args:
        needed: keys that it must have.

    Raises:
        Unreadable: the file cannot be read, or a key is not as ``SCHEMA`` says.
    """
    found = cleaned(read_json(path))
    wrong = _problem(found, needed) if isinstance(found, dict) else "it is not a JSON object"
    if wrong:
        raise Unreadable(wrong)
    return found


def read(path: Path, needed: Sequence[str] = WHOLE) -> dict[str, Any]:
    """Return the same as ``load``, but raise UserError."""
    with readable(path, "restore it, or leave the run out", "cannot be read as results"):
        return load(path, needed)


def kept(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the bytes kept beside the model, as exemplars and as the method's state; None if not recorded."""
    if "memory_bytes" not in results:
        return None
    return results["memory_bytes"], results.get("state_bytes", 0)


def beside_frozen(level: float, last: float) -> str:
    """Compare the accuracy of the frozen features with a run's last one, in words."""
    return f"frozen features without training: {100 * level:.1f} (this run: {100 * last:.1f})"


def test_images(results: dict[str, Any]) -> int:
    """Return the largest number of test images that the results allow for."""
    known = [results.get("test_counts"), [row["n"] for row in results.get("per_class", ())]]
    return max((sum(counts) for counts in known if counts), default=MOST_ROWS)


def _problem(results: dict[str, Any], needed: Sequence[str]) -> str:
    """Return what is wrong with the results of a run; empty where nothing is."""
    for key in needed:
        if key not in results:
            return f'it has no "{key}"'
    for key, fits in SCHEMA.items():
        if key in results and not fits(results[key]):
            return f'its "{key}" is not what docs/results.md says'
    if "retrieval" in results and not results["retrieval"]["after_stage"]:
        return 'its "retrieval" has no stage'
    tasks, classes = len(results.get("tasks", ())), len(results.get("classes", ()))
    for key in _A_TASK if tasks else ():
        if results.get(key) is not None and len(results[key]) != tasks:
            return f'its "{key}" is not as long as its "tasks"'
    if any(len(row) > len(results["matrix"]) for row in results.get("matrix", ())):
        return 'a row of its "matrix" is longer than the matrix'
    if tasks and any(row["task"] >= tasks for row in results.get("per_class", ())):
        return 'its "per_class" has a task that is not in its "tasks"'
    if classes and len(results.get("class_labels") or ()) not in (0, classes):
        return 'its "class_labels" is not as long as its "classes"'
    return ""
