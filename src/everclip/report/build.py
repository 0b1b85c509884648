"""The report: one offline HTML file from one run directory or several."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from everclip.errors import UserError
from everclip.report.figures import figures
from everclip.report.read import Json, RunData, read_run
from everclip.report.svg import FIGURE_CSS, csv_address, printable

_HERE = Path(__file__).parent


def build(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of ``runs``, one after the other, as one self-contained HTML file.

    A run that is still going or was interrupted is reported as far as it got; a path that holds no run is
    named on the page and left out. The file is replaced in one step, so a browser never sees half of it.

    Args:
        runs: run directories.
        out: the HTML file to write; its folder is made.

    Returns:
        ``out``.

    Raises:
        UserError: none of ``runs`` is a readable run directory.
    """
    read: list[RunData] = []
    skipped: list[str] = []
    for path in runs:
        try:
            read.append(read_run(path))
        except UserError as error:
            skipped.append(str(error))
    if not read:
        raise UserError("; ".join(skipped) or "no run to report; name at least one run directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_name(out.name + ".part")
    # Undecodable file names (lone surrogates) are written as escapes instead of failing the report.
    half.write_text(_page(read, skipped), encoding="utf-8", errors="backslashreplace")
    os.replace(half, out)
    return out


def _page(runs: Sequence[RunData], skipped: Sequence[str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, points=points, size=size, duration=duration, printable=_printable
    )
    template = environment.get_template("page.html.j2")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        runs=[_context(run, f"run{k + 1}") for k, run in enumerate(runs)],
        skipped=skipped,
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        figure_css=FIGURE_CSS,
        script=script,
        script_hash=digest,
    )


def _context(run: RunData, prefix: str) -> Json:
    """All that the template shows of one run."""
    per_class = _per_class(run)
    return {
        "prefix": prefix,
        "run": run,
        "subject": [
            str(run.fact(key)) for key in ("method", "data", "model", "scenario") if run.fact(key) is not None
        ],
        "seed": run.fact("seed"),
        "verdict": _verdict(run),
        "tiles": _tiles(run),
        "figures": figures(run, prefix),
        "per_class": per_class,
        "below": sum(row["change"] < 0 for row in per_class),
        "per_class_csv": csv_address(
            ["class", "task", "test_images", "zero_shot", "after_learning", "last"],
            [
                [r["class"], r["task"] + 1, r["n"], r["zero_shot"], r["after_learning"], r["last"]]
                for r in per_class
            ],
        ),
        "stages": _stages(run),
        "cost": _cost(run),
        "command": _command(run),
        "order": _order(run),
        "environment": list(_flat(run.environment)),
    }


def percent(value: float | None) -> str:
    """A fraction as ``71.2 %``; an en dash for nothing."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A signed difference of fractions in percentage points, with a true minus sign."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def size(value: float | None) -> str:
    """Bytes in decimal units: ``12.3 MB``."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Seconds as ``8.4 s``, ``6.9 min`` or ``2.1 h``."""
    if seconds is None:
        return "–"
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} s"


def _printable(value: object) -> str:
    return printable(str(value))


def _zero_shot_now(run: RunData) -> float | None:
    """The pretrained model on the test set of the last accuracy shown."""
    if run.results:
        return run.results["zero_shot"]
    return run.zero_shot[len(run.accuracy) - 1] if run.accuracy and run.zero_shot else None


def _forgetting(run: RunData) -> float | None:
    if run.results:
        return run.results["forgetting"]
    known = [value for value in run.forgetting if value is not None]
    return sum(known) / len(known) if known else None


def _average(run: RunData) -> float:
    return run.results.get("average", sum(run.accuracy) / len(run.accuracy))


def _verdict(run: RunData) -> Json:
    """The result in a few sentences; ``mood`` (better, worse, level, open) picks the mark beside it."""
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
            "head": f"{unfinished}{percent(last)} right.",
            "more": ["Zero-shot is unknown."],
        }
    gap, images = last - base, sum(run.test_counts[:done])
    # Half a 95 % interval of the difference as if the accuracies were independent: wider than the paired one.
    margin = 1.96 * math.sqrt((last * (1 - last) + base * (1 - base)) / images) if images else 0.0
    mood = "level" if abs(gap) < 5e-4 else "better" if gap > 0 else "worse"
    harm = ": training did harm" if -gap > margin else ""
    words = {
        "level": "As good as zero-shot, no better",
        "better": f"{100 * gap:.1f} points better than zero-shot",
        "worse": f"Worse than zero-shot by {-100 * gap:.1f} points{harm}",
    }
    when = f"all {done} tasks" if done > 1 else "the only task"
    if done < planned:
        when = f"{done} of {planned} tasks"
    both = (
        f"After {when} the model gets {percent(last)} of the test images right;"
        f" the pretrained model gets {percent(base)} of the same images, among the same classes."
    )
    more = [both]
    if mood != "level" and abs(gap) < margin:
        more.append(f"With {images} test images a gap below {100 * margin:.1f} points may be chance.")
    forgotten = _forgetting(run)
    if forgotten is not None:
        verb = "lost" if forgotten >= 0 else "gained"
        more.append(f"Earlier tasks {verb} {abs(100 * forgotten):.1f} points on average since their best.")
    return {"mood": mood if run.finished else "open", "head": f"{unfinished}{words[mood]}.", "more": more}


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """(label, big number, small print)."""
    if not run.accuracy:
        return []
    now = " accuracy" if run.finished else " so far"
    last, base, memory = run.accuracy[-1], _zero_shot_now(run), run.stages[-1]["memory"] if run.stages else {}
    gap = None if base is None else last - base
    held = run.results.get("memory_bytes", memory.get("bytes"))
    count = memory.get("count")
    seconds = run.results.get("seconds", sum(stage["seconds"] for stage in run.stages))
    return [
        (f"last{now}", percent(last), "on all classes learned"),
        (f"average{now}", percent(_average(run)), "mean over the tasks"),
        ("zero-shot", percent(base), "pretrained model, same test images"),
        ("difference", f"{points(gap)}", "points, last − zero-shot"),
        (
            "forgetting",
            "–" if (lost := _forgetting(run)) is None else f"{100 * lost:.1f}",
            "points lost since the best",
        ),
        (
            "memory",
            "none" if count == 0 else size(held),
            "no image kept" if not count else f"{count} images kept",
        ),
        ("time", duration(seconds), f"{seconds:.1f} seconds"),
    ]


def _per_class(run: RunData) -> list[Json]:
    """Rows of the per-class table, worst last accuracy first; classes without test images are left out."""
    rows = [
        row | {"change": row["last"] - row["zero_shot"], "since": row["last"] - row["after_learning"]}
        for row in run.results.get("per_class", [])
        if row["last"] is not None
    ]
    return sorted(rows, key=lambda row: (row["last"], row["change"], row["class"]))


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
                "seconds": stage["seconds"],
                "memory": stage["memory"],
            }
        )
    return rows


def _cost(run: RunData) -> list[tuple[str, str, str]]:
    """(what, value, exact value); from the log alone where the run has not finished."""
    results, rates = (
        run.results,
        [step["images_per_second"] for step in run.steps if "images_per_second" in step],
    )
    speed = results.get("images_per_second", sum(rates) / len(rates) if rates else None)
    rows: list[tuple[str, Any, str]] = [
        ("time", results.get("seconds", sum(stage["seconds"] for stage in run.stages) or None), "duration"),
        ("training images per second", speed, "number"),
        ("optimizer steps", results.get("optimizer_steps", len(run.steps) or None), "count"),
        ("training samples seen", results.get("samples_seen"), "count"),
        ("trained parameters", results.get("trainable_parameters"), "count"),
        ("memory: image bytes", results.get("memory_bytes"), "size"),
        ("method state beside the model", results.get("state_bytes"), "size"),
        ("peak memory of the process", results.get("peak_memory_bytes"), "size"),
    ]
    show = {"duration": duration, "size": size, "number": lambda v: f"{v:,.1f}", "count": lambda v: f"{v:,}"}
    exact = {"duration": lambda v: f"{v:.1f} s", "size": lambda v: f"{v:,} bytes"}
    return [
        (what, show[kind](value), exact[kind](value) if kind in exact else "")
        for what, value, kind in rows
        if value is not None
    ]


def _command(run: RunData) -> str:
    """What repeats the run, in a new folder where the config names one: train leaves a finished run alone."""
    words = ["everclip", "train", str(run.path / "config.toml")]
    if run.config.get("out"):
        words.append(f"out={run.path.parent / (run.name + '-again')}")
    return shlex.join(words)


def _order(run: RunData) -> list[tuple[str, list[str]]]:
    """Classes by the task that teaches them, in the order learned."""
    return [
        (task, [name for name in run.classes if run.class_task.get(name) == t])
        for t, task in enumerate(run.tasks)
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested JSON as (dotted key, text)."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _flat(inside, f"{path}.{key}" if path else str(key))
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
