"""What ``everclip train data=X method=M`` reaches without any tuning, beside zero-shot.

    EVERCLIP_DATA=/folder/with/caltech50/pacs128/cifar100 python -m benchmarks.defaults

runs four methods with no memory, one and ten exemplars per class on five settings, three seeds of each, with every
other key at its default, and writes benchmarks/defaults.md at the start and after each run. About fifteen processor
hours; it goes on where it stopped. What is in benchmarks/defaults/ is not run again.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.jobs import Bench, Job, Json, apart, machines, rows
from everclip.seeding import hash64

HERE = Path(__file__).parent
METHODS = ("gcl", "gdro", "finetune", "clip")
LEVELS = (0, 1, 10)
SEEDS = (0, 1, 2)
TRAIN, TEST = 50, 20
MARGIN = 15.0
"""Points above zero-shot that gcl and gdro have to reach in class-incremental settings."""


class Setting(NamedTuple):
    """A data set and its scenario; ``groups``: classes, or classes of all domains, that a memory is shared among."""

    words: tuple[str, ...]
    groups: int
    domains: bool = False


SETTINGS = {
    "caltech50": Setting(("data=imagefolder:caltech50",), 50),
    "emoji": Setting(("data=emoji",), 100),
    "cifar100": Setting(("data=imagefolder:cifar100_part",), 100),
    "emoji domains": Setting(("data=emoji", "scenario.kind=domain-incremental"), 100, True),
    "pacs": Setting(("data=domainfolder:pacs_part", "scenario.kind=domain-incremental"), 7, True),
}


def cifar_part(source: Path, out: Path, train: int = TRAIN, test: int = TEST) -> None:
    """Copy ``train`` and ``test`` pictures of each class of CIFAR-100, those whose names have the smallest hashes.

    A part that is there already is left as it is.
    """
    if out.exists():
        return
    half = out.with_name(f"{out.name}.part")
    for part, count in (("train", train), ("test", test)):
        for folder in sorted((source / part).iterdir()):
            names = sorted(folder.iterdir(), key=lambda file: hash64("cifar-part", f"{part}/{file.name}"))
            (half / part / folder.name).mkdir(parents=True, exist_ok=True)
            for file in names[:count]:
                shutil.copyfile(file, half / part / folder.name / file.name)
    half.rename(out)


def jobs(seed: int, level: int) -> Iterator[Job]:
    """Every run of a seed at a memory size."""
    for place, setting in SETTINGS.items():
        for method in METHODS:
            budget = f"memory.budget={level * setting.groups}"
            words = (*setting.words, f"method={method}", budget, f"seed={seed}")
            yield Job(name(place, method, level, seed), words)


def name(place: str, method: str, level: int, seed: int) -> str:
    """The name of a job and its file."""
    return f"{place.replace(' ', '-')}-{method}-m{level}-s{seed}"


def gain(run: Json) -> float:
    """Points of the last accuracy above zero-shot on the same test images."""
    return 100 * (run["last"] - run["zero_shot"])


def page(results: dict[str, Json]) -> str:
    """The results as a page."""
    gains = {key: gain(run) for key, run in results.items()}
    below = [key for key, points in gains.items() if points < 0]
    short = [
        name(place, method, level, seed)
        for place, setting in SETTINGS.items()
        for method in ("gcl", "gdro")
        for level in LEVELS
        for seed in SEEDS
        if not setting.domains and gains.get(name(place, method, level, seed), MARGIN) < MARGIN
    ]
    lines = [
        "# What methods reach with their defaults",
        "",
        "`EVERCLIP_DATA=... python -m benchmarks.defaults`: `everclip train data=X method=M memory.budget=N seed=S`",
        f"with every other key at its default (model `lite`, 96 px); one thread per run, on {machines(results)}.",
        "Last accuracy in %, one number per seed (0, 1, 2; – is not run yet). `cifar100`: 50 training and 20 test",
        "pictures per class; `pacs`: 60 and 20 per class and domain. The logit scale of `lite` was chosen on",
        "caltech50.",
        "",
        f"{len(results)} of {len(SETTINGS) * len(METHODS) * len(LEVELS) * len(SEEDS)} runs;"
        f" {len(below)} end below zero-shot{_named(below)}. Of the class-incremental runs of gcl and gdro,"
        f" {len(short)} end less than {MARGIN:.0f} points above it{_named(short)}.",
    ]
    for place in SETTINGS:
        lines += ["", f"## {place}", "", "| method | exemplars per class | last | zero-shot | least gain |"]
        lines.append("| --- | ---: | --- | ---: | ---: |")
        for method in METHODS:
            for level in LEVELS:
                found = [results.get(name(place, method, level, seed)) for seed in SEEDS]
                known = [run for run in found if run]
                last = " ".join(f"{100 * run['last']:.1f}" if run else "–" for run in found)
                zero = " ".join(sorted({f"{100 * run['zero_shot']:.1f}" for run in known}))
                least = f"{min(map(gain, known)):+.1f}" if known else "–"
                lines.append(f"| {method} | {level} | {last} | {zero} | {least} |")
    lines += [
        "",
        "## GDRO minus GCL",
        "",
        "Last accuracy in points, mean over the seeds that both have, with a 95 % bootstrap interval over classes.",
        "",
        *rows(
            ["", *(f"{level} per class" for level in LEVELS)], [_against(results, one) for one in SETTINGS]
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _against(results: dict[str, Json], place: str) -> list[str]:
    """GDRO minus GCL on a set, by memory size."""
    cells = [place]
    for level in LEVELS:
        runs = (
            [results.get(name(place, method, level, seed)) for seed in SEEDS] for method in ("gdro", "gcl")
        )
        both = [(first, second) for first, second in zip(*runs, strict=True) if first and second]
        cells.append(apart([one for one, _ in both], [other for _, other in both]) if both else "–")
    return cells


def _named(keys: list[str]) -> str:
    return f" ({', '.join(keys)})" if keys else ""


def main() -> None:
    """Run what is missing and write the page."""
    bench = Bench.from_arguments(__doc__ or "", HERE / "defaults", "caltech50", "pacs128", "cifar100")
    cifar_part(bench.scratch / "cifar100", bench.scratch / "cifar100_part")
    every = [job for seed in SEEDS for level in LEVELS for job in jobs(seed, level)]
    for _ in itertools.chain([None], bench.follow([job] for job in every)):
        (HERE / "defaults.md").write_text(page(bench.kept(every)), encoding="utf-8")
    print(page(bench.kept(every)))


if __name__ == "__main__":
    main()
