"""What methods reach on streams: few shots, a long tail, blurry tasks, one pass, data sets one after another, time.

    EVERCLIP_DATA=/folder/with/caltech50/pacs128/cifar100 python -m benchmarks.streams

runs five methods (and zscl where data sets follow one another) on each stream without a memory, seed 0: ``lite`` at
96 px, its top block trained. It writes benchmarks/streams.md and its figure at the start and after each run, and goes
on where it stopped; what is in benchmarks/streams/ is not run again. About two minutes of one processor a run.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import NamedTuple

from benchmarks.defaults import cifar_part
from benchmarks.jobs import Bench, Job, Json, machines
from everclip.seeding import hash64

HERE = Path(__file__).parent
METHODS = ("ridge", "multilayer_lda", "gcl", "gdro", "finetune")
TRAINED = ("train.epochs=2",)
COMMON = ("memory.budget=0", "image_size=96", "tune=top:1", "seed=0", "references=none")
CALTECH = "data=imagefolder:caltech50"


class Stream(NamedTuple):
    """A scenario with its data: the words of a run, the measure that is reported, and the methods that take part."""

    words: tuple[str, ...]
    measure: str
    once: bool = False
    methods: tuple[str, ...] = METHODS


JOINED = ("data=joined:caltech50+pacs128/photo+cifar100_stream", "scenario.kind=cross-domain")
STREAMS = {
    "few-shot": Stream((CALTECH, "scenario.kind=few-shot", "scenario.base=30", "scenario.tasks=5"), "macro"),
    "long-tailed": Stream(
        (CALTECH, "scenario.kind=long-tailed", "scenario.imbalance=10", "scenario.many=10", "scenario.few=5",
         "scenario.tasks=5"),
        "macro",
    ),
    "blurry": Stream((CALTECH, "scenario.kind=blurry", "scenario.tasks=5"), "last"),
    "online": Stream(
        (CALTECH, "scenario.kind=online", "scenario.tasks=5", "scenario.every=150"), "any_time", once=True
    ),
    "time": Stream(("data=csv:dated.csv", "scenario.kind=time", "scenario.tasks=5"), "any_time"),
    "cross-domain, known": Stream((*JOINED, "scenario.task_id=known"), "transfer", methods=(*METHODS, "zscl")),
    "cross-domain, unknown": Stream((*JOINED, "scenario.task_id=unknown"), "transfer", methods=(*METHODS, "zscl")),
}  # fmt: skip


def job(stream: str, method: str) -> Job:
    """One run."""
    found = STREAMS[stream]
    trains = method not in ("ridge", "multilayer_lda")
    extra = TRAINED if trains and not found.once else ()
    name = f"{stream.replace(', ', '-')}-{method}"
    return Job(name, (*found.words, f"method={method}", *COMMON, *extra))


def jobs() -> list[Job]:
    """All runs, one method on every stream before the next, so that a part of them covers all streams."""
    return [
        job(name, method)
        for method in (*METHODS, "zscl")
        for name, stream in STREAMS.items()
        if method in stream.methods
    ]


def dated(pictures: Path, out: Path) -> None:
    """List the pictures of a folder with made-up times: each class has a wide period of its own, in the order of a
    hash, so that periods overlap; its pictures are spread evenly over that period."""
    classes = sorted(path.name for path in (pictures / "train").iterdir())
    order = sorted(classes, key=lambda name: hash64("dated", name))
    half = out.with_name(f"{out.name}.part")
    with half.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split", "time"])
        for part in ("train", "test"):
            for name in classes:
                files = sorted((pictures / part / name).iterdir())
                for number, path in enumerate(files):
                    time = order.index(name) + len(classes) / 2 * (number + 0.5) / len(files)
                    writer.writerow([f"caltech50_copy/{part}/{name}/{path.name}", name, part, f"{time:.3f}"])
    half.replace(out)


def prepare(bench: Bench, source: Path) -> None:
    """Put into the scratch folder what the streams read beside ``caltech50``."""
    cifar_part(source / "cifar100", bench.scratch / "cifar100_stream", 50, 10)
    if not (bench.scratch / "dated.csv").exists():  # a list reads no links out of its folder
        shutil.copytree(source / "caltech50", bench.scratch / "caltech50_copy", dirs_exist_ok=True)
        dated(bench.scratch / "caltech50_copy", bench.scratch / "dated.csv")


def main() -> None:
    """Run what is missing."""
    import os

    from benchmarks.streams_page import write

    bench = Bench.from_arguments(__doc__ or "", HERE / "streams", "caltech50", "pacs128")
    prepare(bench, Path(os.environ["EVERCLIP_DATA"]).resolve())
    every = jobs()
    write(bench.kept(every), machines(bench.kept(every)))
    for one in every:
        found: dict[str, Json] = bench.run([one])
        if found:
            known = bench.kept(every)
            write(known, machines(known))


if __name__ == "__main__":
    main()
