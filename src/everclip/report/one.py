"""Write the page's text about one run."""

from __future__ import annotations

from typing import Any

from everclip.compare.groups import settings
from everclip.report.figure import csv_address
from everclip.report.many_figures import sure
from everclip.report.map_figures import old_images
from everclip.report.measures import measures
from everclip.report.provenance import command, environment
from everclip.report.retrieval import retrieval_table
from everclip.report.run_figures import figures
from everclip.report.tables import CONFUSION, Table, confusion_cells, table
from everclip.report.tuning import run_table
from everclip.runs.predictions import calibration_error, confusions, overconfidence, predictions, reliability
from everclip.runs.read import Json, RunData
from everclip.runs.schema import beside_frozen, kept
from everclip.runs.words import duration, headline, noise, percent, points, size

_MOST_PAIRS = 40  # confusions in the table
_MOST_CLASSES = 2000  # in the table, the worst first; its CSV file has all


def context(run: RunData, prefix: str) -> Json:
    """Return all that the template shows of one run; ``prefix`` keeps the ids of several runs apart."""
    per_class = _per_class(run)
    drawn = figures(run, prefix)
    method = str(run.value("method") or "run")
    more = [old_images([(method, [run])], prefix), *sure([("", settings([run])[0].every)], prefix)]
    drawn |= {figure.key: figure for figure in more if figure is not None}
    return {
        "prefix": prefix,
        "run": run,
        "subject": [
            str(run.value(key))
            for key in ("method", "data", "model", "scenario.kind")
            if run.value(key) is not None
        ],
        "seed": run.value("seed"),
        "verdict": _beside_frozen(run, _verdict(run)),
        "tiles": _tiles(run),
        "twice": _twice(run),
        "measures": measures(run.results),
        "figures": drawn,
        "per_class": per_class[:_MOST_CLASSES],
        "classes": len(per_class),
        "below": sum((row["change"] or 0) < 0 for row in per_class) if run.zero_shot else None,
        "per_class_csv": csv_address(
            ["class", "task", "test_images", "zero_shot", "after_learning", "last"],
            [
                [r["class"], r["task"] + 1, r["n"], r["zero_shot"], r["after_learning"], r["last"]]
                for r in per_class
            ],
        ),
        "confusions": _confusions(run, prefix),
        "retention": _retention(run, per_class),
        "retrieval": retrieval_table(run, prefix),
        "stages": _stages(run),
        "cost": _cost(run),
        "command": command(run),
        "tuning": run_table(run, prefix),
        "order": run.order,
        "environment": environment(run).items(),
    }


def _twice(run: RunData) -> str:
    """Say which pictures are there twice, byte for byte; empty where none is, or that is not known."""
    leaked, copies = (run.results.get(key) or 0 for key in ("duplicates", "train_copies"))
    words = []
    if leaked:
        words.append(
            f"{leaked:,} of {sum(run.test_counts):,} test pictures are training pictures too, byte for byte: the"
            " accuracy on them flatters."
        )
    if copies:
        words.append(f"{copies:,} training pictures are there once more among the training pictures.")
    return " ".join([*words, "everclip data check shows them."]) if words else ""


def _zero_shot_now(run: RunData) -> float | None:
    """Return the pretrained model on the test set of the last accuracy shown."""
    if run.results:
        return run.results["zero_shot"]
    return run.zero_shot[len(run.accuracy) - 1] if run.accuracy and run.zero_shot else None


def _forgetting(run: RunData) -> float | None:
    if run.results:
        return run.results["forgetting"]
    known = [value for value in run.forgetting if value is not None]
    return sum(known) / len(known) if known else None


def _verdict(run: RunData) -> Json:
    """Return the result in a few sentences; ``mood`` (better, worse, level, open) picks the mark beside it."""
    done, planned = len(run.accuracy), len(run.tasks)
    if not done:
        recorded = (
            f"{len(run.steps)} training steps are recorded." if run.steps else "Nothing is recorded yet."
        )
        return {"mood": "open", "head": "Unfinished: no task learned so far.", "more": [recorded]}
    unfinished = "" if run.finished else f"Unfinished: {done} of {planned} tasks learned so far. "
    last, base = run.accuracy[-1], _zero_shot_now(run)
    if base is None:
        return {
            "mood": "open",
            "head": f"{unfinished}accuracy {percent(last)}.",
            "more": ["There is no zero-shot accuracy to compare with."],
        }
    images = sum(run.test_counts[:done])
    mood, words = headline(last, base, images)
    when = f"all {done} tasks" if done > 1 else "the only task"
    if done < planned:
        when = f"{done} of {planned} tasks"
    both = (
        f"After {when} the model classifies {percent(last)} of the test images correctly; the pretrained"
        f" model {percent(base)} of the same images, among the same classes."
    )
    if "retrieval" in run.results:
        both = (
            f"After {when} the model's recall@1 is {percent(last)}, in the mean of captions found by an image and"
            f" images found by a caption, each task among its own; the pretrained model's is {percent(base)}."
        )
    more = [both]
    if mood == "level" and images:
        more.append(noise(last, base, images))
    forgotten = _forgetting(run)
    if forgotten is not None:
        verb = "lost" if forgotten >= 0 else "gained"
        more.append(f"Earlier tasks {verb} {abs(100 * forgotten):.1f} points on average since their best.")
    return {"mood": mood if run.finished else "open", "head": f"{unfinished}{words}.", "more": more}


def _beside_frozen(run: RunData, verdict: Json) -> Json:
    """Return the verdict with what the frozen features give; training that gives less has not paid off."""
    done = len(run.accuracy)
    if not done or not run.frozen_features:
        return verdict
    last, level = run.accuracy[-1], run.frozen_features[done - 1]
    method = (run.results.get("frozen_features_methods") or ["linear algebra"])[-1]
    mood = "worse" if level > last and verdict["mood"] != "open" else verdict["mood"]
    words = beside_frozen(level, last)
    more = (
        "Frozen features: the strongest closed-form classifier on the pretrained model's features"
        f" ({method}), from the same tasks' training images; no image is kept."
    )
    if level > last:
        more += " It is more accurate than this run and trains nothing."
    head = f"{verdict['head']} {words[0].upper()}{words[1:]}."
    return verdict | {"mood": mood, "head": head, "more": [*verdict["more"], more]}


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Return (label, big number, small print)."""
    if not run.accuracy:
        return []
    now = " accuracy" if run.finished else " so far"
    last, base, memory = run.accuracy[-1], _zero_shot_now(run), run.stages[-1]["memory"] if run.stages else {}
    gap = None if base is None else last - base
    average = run.results.get("average", sum(run.accuracy) / len(run.accuracy))
    frozen = run.frozen_features[len(run.accuracy) - 1] if run.frozen_features else None
    held = run.results.get("memory_bytes", memory.get("bytes"))
    state = run.results.get("state_bytes", memory.get("state_bytes", 0))
    count = memory.get("count")
    seconds = run.results.get("seconds", sum(stage["seconds"] for stage in run.stages))
    return [
        (
            f"last{now}",
            percent(last),
            "recall@1, both directions" if "retrieval" in run.results else "on all classes learned",
        ),
        (f"average{now}", percent(average), "mean over the tasks"),
        ("zero-shot", percent(base), "pretrained model, same test images"),
        *(
            [("frozen features", percent(frozen), "closed form, trains nothing")]
            if frozen is not None
            else []
        ),
        ("difference", f"{points(gap)}", "points, last − zero-shot"),
        (
            "forgetting",
            "–" if (lost := _forgetting(run)) is None else f"{100 * lost:.1f}",
            "points lost since the best",
        ),
        (
            "memory",
            "none" if held == state == 0 else size(None if held is None else held + state),
            f"{count or 'no'} image{'' if count == 1 else 's'}: {size(held)}; state of the method:"
            f" {size(state)}",
        ),
        ("time", duration(seconds), f"{seconds:.1f} seconds"),
    ]


def _per_class(run: RunData) -> list[Json]:
    """Return rows of the per-class table, worst last accuracy first; classes without test images are left out."""
    rows = [
        row
        | {
            "change": None if row["zero_shot"] is None else row["last"] - row["zero_shot"],
            "since": row["last"] - row["after_learning"],
        }
        for row in run.results.get("per_class", [])
        if row["last"] is not None
    ]
    return sorted(rows, key=lambda row: (row["last"], row["change"] or 0.0, row["class"]))


def _stages(run: RunData) -> list[Json]:
    planned = run.start.get("tasks", [])
    rows = []
    for stage in run.stages:
        t = int(stage["stage"])
        task = planned[t] if t < len(planned) else {}
        rows.append(
            {
                "name": run.tasks[t] if t < len(run.tasks) else f"task {t + 1}",
                "classes": len(task.get("classes", [])),
                "train": task.get("train"),
                "test": task.get("test"),
                "accuracy": stage["accuracy_after_stage"],
                "zero_shot": run.zero_shot[t] if t < len(run.zero_shot) else None,
                "frozen": run.frozen_features[t] if t < len(run.frozen_features) else None,
                "seconds": stage["seconds"],
                "memory": stage["memory"],
            }
        )
    return rows


def _cost(run: RunData) -> list[tuple[str, str, str]]:
    """Return (what, value, exact value); from the log alone where the run has not finished."""
    results = run.results
    rates = [step["images_per_second"] for step in run.steps if "images_per_second" in step]
    speed = results.get("images_per_second", sum(rates) / len(rates) if rates else None)
    rows: list[tuple[str, Any, str]] = [
        ("time", results.get("seconds", sum(stage["seconds"] for stage in run.stages) or None), "duration"),
        ("training images per second", speed, "number"),
        ("optimizer steps", results.get("optimizer_steps", len(run.steps) or None), "count"),
        ("steps skipped because the loss was not finite", results.get("skipped_steps") or None, "count"),
        ("training samples seen", results.get("samples_seen"), "count"),
        ("trained parameters", results.get("trainable_parameters"), "count"),
        ("memory: image bytes", results.get("memory_bytes"), "size"),
        ("method state beside the model", results.get("state_bytes"), "size"),
        ("kept in total: images + state", None if (both := kept(results)) is None else sum(both), "size"),
        ("activation cache", results.get("cache_bytes"), "size"),
        ("peak memory of the process", results.get("peak_memory_bytes"), "size"),
    ]
    show = {"duration": duration, "size": size, "number": lambda v: f"{v:,.1f}", "count": lambda v: f"{v:,}"}
    exact = {"duration": lambda v: f"{v:.1f} s", "size": lambda v: f"{v:,} bytes"}
    return [
        (what, show[kind](value), exact[kind](value) if kind in exact else "")
        for what, value, kind in rows
        if value is not None
    ]


def _confusions(run: RunData, prefix: str) -> Table | None:
    """Tell which class is taken for which, the largest first; None where the run did not record it."""
    pairs = confusions(run)
    if not pairs:
        return None
    rows = [confusion_cells(run, pair) for pair in pairs[:_MOST_PAIRS]]
    return table(f"{prefix}-confusions", CONFUSION, rows)


def _retention(run: RunData, per_class: list[Json]) -> list[str]:
    """Say what is left of zero-shot, and how far the model's probabilities can be believed."""
    if not run.finished:
        return []
    lines: list[str] = []
    below = [row["change"] for row in per_class if (row["change"] or 0) < 0]
    if below:
        lines.append(
            f"{len(below)} of {len(per_class)} classes end below zero-shot, by"
            f" {-100 * sum(below) / len(below):.1f} points on average."
        )
    ahead = run.results.get("forward_transfer")
    if ahead is not None:
        lines.append(
            f"On the next task, before learning it, the model differs by {points(ahead)} points from the"
            f" pretrained one: the effect of training on unseen classes (forward transfer)."
        )
    found = predictions(run)
    bins = reliability([found]) if found is not None else []
    if bins:
        over = overconfidence(bins)
        lines.append(
            f"Its probabilities are off by {100 * calibration_error(bins):.1f} points on average (expected"
            f" calibration error, {len(bins)} bins): it is {'over' if over > 0 else 'under'}confident by"
            f" {abs(100 * over):.1f} points."
        )
    return lines
