"""The whole of real CIFAR-100 with ``lite`` on a processor: two closed forms, and GDRO with and without exemplars.

    EVERCLIP_DATA=/folder/with/cifar100 python -m benchmarks.cifar100

learns ten tasks of ten classes from 50,000 pictures and tests on 10,000, at 96 px, and writes benchmarks/cifar100.md.
What is in benchmarks/cifar100/ is not run again.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.jobs import Bench, Job, Json, machines

HERE = Path(__file__).parent
SETTING = ("data=cifar100:cifar100", "image_size=96", "scenario.tasks=10")
TRAINED = ("tune=top:2", "train.epochs=1", "cache.views=2", "cache.shared=true")
JOBS = (
    Job("ridge-m0", (*SETTING, "method=ridge", "memory.budget=0")),
    Job("slda-m0", (*SETTING, "method=slda", "memory.budget=0")),
    Job("gdro-m0", (*SETTING, *TRAINED, "method=gdro", "memory.budget=0")),
    Job("gdro-m2000", (*SETTING, *TRAINED, "method=gdro", "memory.budget=2000")),
)


def page(results: dict[str, Json]) -> str:
    """The results as a page."""
    zero = " ".join(sorted({f"{100 * run['zero_shot']:.1f}" for run in results.values()}))
    lines = [
        "# All of CIFAR-100",
        "",
        "`EVERCLIP_DATA=... python -m benchmarks.cifar100`: ten tasks of ten classes, 50,000 training and 10,000 test",
        f"pictures, `lite` at 96 px, seed 0, one thread per run, on {machines(results)}. GDRO trains with",
        f"`{' '.join(TRAINED)}`",
        "and every other key at its default. Accuracies are in %. Times are of whole runs, including the start,",
        f"testing after each task and the page. Zero-shot: {zero} %. Other work was running, so wall-clock times say",
        "little. GDRO with 2,000 exemplars reads the activations that GDRO without any cached. It was also stopped",
        "once and resumed, so its CPU minutes are not known.",
        "",
        "| method | memory | last | average | forgetting | images + state MB | wall min | CPU min |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for job in JOBS:
        run = results.get(job.name)
        method, _, memory = job.name.partition("-m")
        if run is None:
            lines.append(f"| {method} | {memory} |" + " – |" * 6)
            continue
        numbers = [f"{100 * run[key]:.1f}" for key in ("last", "average", "forgetting")]
        numbers.append(f"{(run['memory_bytes'] + run['state_bytes']) / 1e6:.1f}")
        numbers += [
            f"{run['seconds'] / 60:.1f}",
            "–" if "resumed" in run else f"{run['cpu_seconds'] / 60:.1f}",
        ]
        lines.append(f"| {method} | {memory} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write the page."""
    bench = Bench.from_arguments(__doc__ or "", HERE / "cifar100", "cifar100")
    (HERE / "cifar100.md").write_text(page(bench.run(JOBS)), encoding="utf-8")


if __name__ == "__main__":
    main()
