"""Write the page's text about one run."""

from __future__ import annotations

from typing import Any

from everclip.compare.groups import mean, settings
from everclip.metrics.calibration import BINS
from everclip.metrics.stats import by_chance
from everclip.report.figure import csv_address
from everclip.report.many_figures import sure
from everclip.report.map_figures import old_images
from everclip.report.measures import measures
from everclip.report.provenance import command, environment
from everclip.report.retrieval import retrieval_table
from everclip.report.run_figures import figures
from everclip.report.tables import CONFUSION, Table, confusion_cells, table
from everclip.report.tuning import run_table
from everclip.runs.predictions import calibration, confusions, learned_captions, no_confusions, predictions
from everclip.runs.read import Json, RunData
from everclip.runs.schema import beside_frozen, kept
from everclip.runs.words import duration, headline, noise, percent, points, several, size
from everclip.system.text import printable

_MOST_PAIRS = 40  # confusions in the table
_MOST_CLASSES = 2000  # in the table, the worst first; its CSV file has all


def context(run: RunData, prefix: str) -> Json:
    """Return all that the template shows of one run; ids begin with ``prefix``."""
    per_class = _per_class(run)
    method = str(run.value("method") or "run")
    more = [old_images([(method, [run])], prefix), *sure([("", settings([run])[0].every)], prefix)]
    drawn = figures(run, prefix) | {figure.key: figure for figure in more if figure is not None}
    subject = map(run.value, ("method", "data", "model", "scenario.kind"))
    return {
        "prefix": prefix,
        "run": run,
        "subject": [str(value) for value in subject if value is not None],
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
        "no_confusions": no_confusions(run),
        "retention": _retention(run, per_class),
        "retrieval": retrieval_table(run, prefix),
        "stages": _stages(run),
        "cost": _cost(run),
        "command": command(run),
        "tuning": run_table(run, prefix),
        "order": run.order,
        "environment": environment(run).items(),
        "config": "\n".join(map(printable, run.config_text.expandtabs().split("\n"))),
    }


def _twice(run: RunData) -> str:
    """Say how many pictures occur twice, byte for byte, if any."""
    leaked, copies = (run.results.get(key) or 0 for key in ("duplicates", "train_copies"))
    text = ""
    if leaked:
        count = f"{leaked:,} of {sum(run.test_counts):,}"
        text += f"{count} test pictures are training pictures too, byte for byte, which inflates accuracy. "
    if copies:
        text += f"{copies:,} training pictures are exact copies of other training pictures. "
    return text and f"{text}everclip data check shows them."


def _zero_shot_now(run: RunData) -> float | None:
    """Return the pretrained model's accuracy on the test images of the last accuracy."""
    if run.results:
        return run.results["zero_shot"]
    return run.zero_shot[len(run.accuracy) - 1] if run.accuracy and run.zero_shot else None


def _forgetting(run: RunData) -> float | None:
    return run.results["forgetting"] if run.results else mean(run.forgetting)


def _verdict(run: RunData) -> Json:
    """Return the result in a few sentences, and the mood (better, worse, level, open) of its mark."""
    done, planned = len(run.accuracy), len(run.tasks)
    if not done:
        steps = several(len(run.steps), "training step")
        recorded = f"Recorded so far: {steps}." if run.steps else "Nothing is recorded yet."
        return {"mood": "open", "head": "Unfinished: no task learned so far.", "more": [recorded]}
    unfinished = "" if run.finished else f"Unfinished: {done} of {planned} tasks learned so far. "
    last, base = run.accuracy[-1], _zero_shot_now(run)
    if base is None:
        head = f"{unfinished}accuracy {percent(last)}."
        return {"mood": "open", "head": head, "more": ["There is no zero-shot accuracy to compare with."]}
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
    """Add the frozen features to a verdict: a run that they beat by more than chance gets the mood worse."""
    done = len(run.accuracy)
    if not done or not run.frozen_features:
        return verdict
    last, level = run.accuracy[-1], run.frozen_features[done - 1]
    method = (run.results.get("frozen_features_methods") or ["linear algebra"])[-1]
    words = beside_frozen(level, last)
    more = (
        "Frozen features: the best of ncm, ridge and slda on the pretrained model's features"
        f" ({method}), from the same tasks' training images; no image is kept."
    )
    mood, images = verdict["mood"], sum(run.test_counts[:done])
    if level - last > max(by_chance(level, last, images), 5e-4):
        more += " It is more accurate than this run and trains nothing."
        mood = "open" if mood == "open" else "worse"
    elif level > last and images:
        more += f" {noise(level, last, images)}"
    head = f"{verdict['head']} {words[0].upper()}{words[1:]}."
    return {"mood": mood, "head": head, "more": [*verdict["more"], more]}


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Return (label, big number, small print)."""
    if not run.accuracy:
        return []
    now, results = " accuracy" if run.finished else " so far", run.results
    last, base, lost = run.accuracy[-1], _zero_shot_now(run), _forgetting(run)
    of = "recall@1, both directions" if "retrieval" in results else "on all classes learned"
    average = results.get("average", mean(run.accuracy))
    tiles = [
        (f"last{now}", percent(last), of),
        (f"average{now}", percent(average), "mean over the tasks"),
        ("zero-shot", percent(base), "pretrained model, same test images"),
    ]
    if run.frozen_features:
        frozen = run.frozen_features[len(run.accuracy) - 1]
        tiles.append(("frozen features", percent(frozen), "closed form, trains nothing"))
    gap = None if base is None else last - base
    memory = run.stages[-1]["memory"] if run.stages else {}
    held = results.get("memory_bytes", memory.get("bytes"))
    state = results.get("state_bytes", memory.get("state_bytes", 0))
    kept = "none" if held == state == 0 else size(None if held is None else held + state)
    count = memory.get("count")  # only the log has it
    images = "images" if count is None else several(count, "image") if count else "no images"
    seconds = results.get("seconds", sum(stage["seconds"] for stage in run.stages))
    return [
        *tiles,
        ("difference", points(gap), "points, last − zero-shot"),
        ("forgetting", "–" if lost is None else f"{100 * lost:.1f}", "points lost since the best"),
        ("memory", kept, f"{images}: {size(held)}; state of the method: {size(state)}"),
        ("time", duration(seconds), f"{seconds:.1f} seconds"),
    ]


def _per_class(run: RunData) -> list[Json]:
    """Return the rows of the per-class table, worst first, without classes that have no test images."""
    rows = [dict(row) for row in run.results.get("per_class", []) if row["last"] is not None]
    for row in rows:
        row["change"] = None if row["zero_shot"] is None else row["last"] - row["zero_shot"]
        row["since"] = row["last"] - row["after_learning"]
    return sorted(rows, key=lambda row: (row["last"], row["change"] or 0.0, row["class"]))


def _stages(run: RunData) -> list[Json]:
    """Return each finished stage with its task, as planned, and its references."""
    planned = dict(enumerate(run.start.get("tasks", [])))
    names, base, frozen = (
        dict(enumerate(found)) for found in (run.tasks, run.zero_shot, run.frozen_features)
    )
    return [
        stage
        | {"classes": [], "train": None, "test": None}
        | planned.get(t, {})
        | {"name": names.get(t, f"task {t + 1}"), "zero_shot": base.get(t), "frozen": frozen.get(t)}
        for stage in run.stages
        for t in [int(stage["stage"])]
    ]


def _cost(run: RunData) -> list[tuple[str, str, str]]:
    """Return (what, value, exact value), from the log until the run has finished."""
    results = run.results
    rates = [step["images_per_second"] for step in run.steps if "images_per_second" in step]
    speed = results.get("images_per_second", mean(rates))
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
    """Return the most frequent confusions; None where there are none, or the run did not record them."""
    rows = [confusion_cells(run, pair) for pair in confusions(run)[:_MOST_PAIRS]]
    return table(f"{prefix}-confusions", CONFUSION, rows) if rows else None


def _retention(run: RunData, per_class: list[Json]) -> list[str]:
    """Return sentences on what is left of zero-shot, and on the calibration of a finished run."""
    if not run.finished:
        return []
    lines: list[str] = []
    if below := [row["change"] for row in per_class if (row["change"] or 0) < 0]:
        depth = -100 * sum(below) / len(below)
        lines.append(
            f"{len(below)} of {len(per_class)} classes end below zero-shot, by {depth:.1f} points on average."
        )
    if (ahead := run.results.get("forward_transfer")) is not None:
        lines.append(
            f"On the next task, before learning it, the model differs by {points(ahead)} points from the"
            " pretrained one: the effect of training on unseen classes (forward transfer)."
        )
    found = predictions(run)
    calibrated = None if found is None else calibration(found)
    if calibrated is not None:
        error, over = calibrated
        lines.append(
            f"Its probabilities are off by {100 * error:.1f} points on average (expected calibration error,"
            f" {BINS} bins): it is {'over' if over > 0 else 'under'}confident by {abs(100 * over):.1f} points."
        )
    elif found is not None:
        lines.append("It recorded no probabilities: calibration is unknown.")
    elif not learned_captions(run):
        lines.append("It left no predictions.npz that can be read, so its confidence is unknown.")
    return lines
