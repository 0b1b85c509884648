"""Write benchmarks/streams.md and its figure from the runs that are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.jobs import Json
from benchmarks.streams import STREAMS, job, jobs
from everclip.plots import style

PAGE = Path(__file__).with_name("streams.md")
FIGURE = Path(__file__).with_name("streams.svg")
ABOUT = {
    "few-shot": "30 classes with all pictures, then four tasks of five classes with 5 pictures per class.",
    "long-tailed": "Class sizes fall from 19 to 2 pictures (imbalance factor 10), five tasks.",
    "blurry": "Si-Blurry, five tasks: half of the classes disjoint, 10 % of the others' pictures spread over all.",
    "online": "Five tasks in one pass with batches of 10, tested after every 150 pictures.",
    "time": "Synthetic times, five periods: classes come and go, and half of them are present at any time.",
    "cross-domain, known": "Caltech-101, PACS photos, CIFAR-100 (50 and 10 pictures per class); set given (MTIL).",
    "cross-domain, unknown": "The same, classified among the classes of all three (X-TAIL).",
}
COLUMNS = {
    "last": "last",
    "macro": "macro",
    "worst_class": "worst class",
    "any_time": "area under any-time accuracy",
    "zero_shot": "zero-shot",
}


def percent(value: float | None) -> str:
    """A share in percent with one digit."""
    return "–" if value is None else f"{100 * value:.1f}"


def value(run: Json, key: str) -> float | None:
    """A number of a run by the name of its measure."""
    if key in ("transfer", "average_of_tasks", "last_of_tasks"):
        return run["cross_domain"][key.removesuffix("_of_tasks")]
    return run[key]["last"] if key == "worst_class" else run[key]


def write(results: Mapping[str, Json], where: str) -> None:
    """The page and its figure."""
    lines = [
        "# Streams",
        "",
        "`EVERCLIP_DATA=... python -m benchmarks.streams`: no memory, seed 0, `lite` at 96 px. Its top block trains",
        "for two epochs per task (one where the stream passes once) at the default rates, which were not tuned for",
        "any stream; ridge and `multilayer_lda` train nothing. There is one run per cell, so differences of a few",
        "points are not meaningful, and a trained method tuned for its stream may gain more.",
        "[docs/streams.md](../docs/streams.md) describes the streams; `benchmarks/streams.py` has the commands.",
        "",
        f"{len(results)} of {len(jobs())} runs are done{f', on {where}' if where else ''}; – is not run yet.",
        "",
        "![Each method on each stream](streams.svg)",
    ]
    for name, stream in STREAMS.items():
        lines += ["", f"## {name}", "", ABOUT[name], ""]
        cross = name.startswith("cross-domain")
        head = ["Transfer", "Average", "Last", "change from zero-shot"] if cross else list(COLUMNS.values())
        if name == "long-tailed":
            head += ["many-shot", "medium-shot", "few-shot"]
        lines += ["| method | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        for method in stream.methods:
            run = results.get(job(name, method).name)
            lines.append(f"| {method} | " + " | ".join(_cells(run, cross, len(head))) + " |")
        known = [results[job(name, m).name] for m in stream.methods if job(name, m).name in results]
        if cross and known:
            base = known[0]["cross_domain"]["transfer_of_zero_shot"]
            lines += ["", f"Transfer of the pretrained model: {percent(base)}."]
    PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")
    draw(results)


def _cells(run: Json | None, cross: bool, count: int) -> list[str]:
    if run is None:
        return ["–"] * count
    if not cross:
        groups = run["by_frequency"]
        more = [percent(groups[name]["accuracy"]) for name in ("many", "medium", "few")] if groups else []
        return [*(percent(value(run, key)) for key in COLUMNS), *more]
    found = run["cross_domain"]
    kept = 100 * (found["transfer"] - found["transfer_of_zero_shot"])
    return [*(percent(found[key]) for key in ("transfer", "average", "last")), f"{kept:+.1f}"]


def draw(results: Mapping[str, Json]) -> None:
    """One panel per stream and one bar per method, by the stream's measure; the pretrained model as a line."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for ax, (name, stream) in zip(axes, STREAMS.items(), strict=False):
        runs = {m: results[n] for m in stream.methods if (n := job(name, m).name) in results}
        values = [100 * (value(run, stream.measure) or 0.0) for run in runs.values()]
        ax.barh(range(len(runs)), values, color=style.FIRST)
        ax.set_yticks(range(len(runs)), list(runs), fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(0, 125)  # room for the numbers
        ax.set_xticks([0, 50, 100])
        ax.set_title(f"{name}: {stream.measure.replace('_', '-')}", fontsize=9)
        base = next(iter(runs.values()), None)
        if base is not None:
            level = (
                base["cross_domain"]["transfer_of_zero_shot"] if base["cross_domain"] else base["zero_shot"]
            )
            ax.axvline(100 * level, color=style.SECOND, linestyle="--")
        for place, number in enumerate(values):
            ax.text(number + 2, place, f"{number:.1f}", va="center", fontsize=8)
    axes[-1].set_axis_off()
    axes[-1].text(
        0, 0.6, "in %; dashed: the pretrained\nmodel (of it the last accuracy,\nor its Transfer)", fontsize=9
    )
    figure.savefig(FIGURE, metadata={"Date": None})
