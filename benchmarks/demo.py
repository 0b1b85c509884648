"""Compare the demo (`everclip train demo`) with the offline default, in speed and accuracy, and with faster variants.

    git worktree add runs/before 33e9b57
    python -m benchmarks.demo --out runs/demo --before runs/before [--variants before demo ...] [--seeds 0 1 2]

Whole runs of the offline default, GDRO with `lite` on the emoji pictures, each a process of its own on one thread: all
variants of a seed in turn, then the next seed. ``before`` is the default of another version, from its checkout. Seconds
are processor seconds of the whole command, with imports, tests, checkpoints and report. A run whose line is in
DIR/runs.jsonl is not run again. Ratios are medians over the seeds against the first variant; the last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.children import python
from benchmarks.jobs import machine

VARIANTS = {
    "before": [],
    "demo": ["demo"],
    "full": ["tune=full"],
    "image": ["tune=image"],
    "top4": ["tune=top:4", "cache.views=8"],
    "top4_four": ["tune=top:4", "cache.views=8", "train.epochs=4"],
    "top3": ["tune=top:3", "cache.views=8"],
    "top2": ["tune=top:2", "cache.views=4"],
    "short": ["train.epochs=3", "train.lr=4e-4", "train.lr_text=3e-5"],
}


def run(name: str, seed: int, out: Path, before: Path | None) -> dict[str, Any]:
    """One run's line."""
    folder = out / f"{name}_{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # left by a benchmark that was stopped
    words = [*VARIANTS[name], f"seed={seed}", "device=cpu", f"out={folder}", "--json"]
    source = before / "src" if name == "before" and before else None
    child = python(["-m", "everclip", "train", *words], source=source)
    results = json.loads(child.output)
    shutil.rmtree(folder)
    row = {"variant": name, "seed": seed, "last": results["last"], "average": results["average"]}
    return row | {"seconds": round(child.seconds, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--variants", nargs="+", default=["full", "demo"], choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    wanted = parser.parse_args()
    if "before" in wanted.variants and wanted.before is None:
        parser.error("--variants before: give --before, a checkout of the version to compare with")
    wanted.out.mkdir(parents=True, exist_ok=True)
    file = wanted.out / "runs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in wanted.seeds:
        for name in wanted.variants:
            if not any((row["variant"], row["seed"]) == (name, seed) for row in rows):
                rows.append(run(name, seed, wanted.out, wanted.before))
                with file.open("a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    found: dict[str, Any] = {}
    for name in wanted.variants:
        own, base = (
            sorted(
                (r for r in rows if r["variant"] == v and r["seed"] in wanted.seeds), key=lambda r: r["seed"]
            )
            for v in (name, wanted.variants[0])
        )
        ratio = median(b["seconds"] / a["seconds"] for a, b in zip(own, base, strict=True))
        found[name] = {"times_as_fast": round(ratio, 2)} | {
            key: round(100 * mean(row[key] for row in own), 1) for key in ("last", "average")
        }
        print(f"| {name} | {ratio:.2f} | {found[name]['last']} | {found[name]['average']} |")
    print(json.dumps(found | {"seeds": wanted.seeds, "machine": machine()}))


if __name__ == "__main__":
    main()
