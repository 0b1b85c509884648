"""Methods of 2023 to 2026 for CLIP or compared on it, beside everclip's own and with common baselines.

    EVERCLIP_DATA=/folder/with/caltech50/cifar100/imagenet1k-sample python -m benchmarks.rivals

tunes every method that ``lite`` can carry with the same number of trials at each memory size, trains it in two orders
of the classes, tests its encoder on ImageNet, switches the defining term of the trained ones off in two tasks, and
writes benchmarks/rivals.md at the start and after each part. About six hours on two cores; it goes on where it
stopped, and what is in benchmarks/rivals/ is not run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import rivals_page
from benchmarks.defaults import cifar_part
from benchmarks.jobs import Bench, Job, Json
from everclip.methods.base.registry import method_class

HERE = Path(__file__).parent
HELD_OUT = ("--data", "imagenet:imagenet")
RIVALS = ("fecam", "layup", "rail", "bofa", "rapf", "vis", "proof", "clap4clip", "engine")
"""Those that ``lite`` can carry."""
PLAIN = "multilayer_lda-plain"
"""It reads only the pictures, as the other closed forms here do, and not their mirror images."""
DUAL = "rail-dual"
"""The other form of RAIL, on a kernel of all images: the better one in its paper."""
METHODS = ("multilayer_lda", PLAIN, "slda", "ranpac", "gcl", "gdro", "finetune", *RIVALS, DUAL)
LEVELS = (0, 5)
"""Exemplars per class."""
SEEDS = (0, 1)
TRIALS = 6
WORDS = ("image_size=96", "scenario.order=seed", "references=none")
OWN = {
    "slda": ("method.eps=gcv",),
    "rapf": ("method.theta=1.3", "method.shrink=true", "method.per_step=6"),
    PLAIN: ("method.mirror=false",),
    DUAL: ("method.kernel=dual",),
    "ranpac": ("method.feature=pooled",),
}
"""RAPF's published distances, 0.55 and 0.65, pair no classes of ``lite``; 1.3 pairs the nearest twentieth. As in its
code for small sets, covariances are shrunk, and an epoch draws from each old class at least once."""
GRIDS = {DUAL: ("method.gamma=0.1,1,3", "method.dual_lam=0.001,0.01,0.1", "method.beta=0.5,0.8,1.0")}
"""Searches of rows that differ from those of their methods."""
ADAPTERS = ("bofa", "rapf", "vis", "proof", "clap4clip", "engine")
"""Methods that train small parts beside towers that stay as they are."""
KEPT = ("tune=text", "cache.views=4", "cache.shared=true")
"""What they run with: four views of each image, whose features the trials and runs share. None trains the text tower;
``tune=text`` only freezes the image tower, and lets ``proof`` train the logit scale."""
TRAINED = ("gcl", "gdro", "finetune")

NOTHING_TO_TUNE = ("slda",)
"""It chooses all its constants on the training images of each run."""


class Setting(NamedTuple):
    """A data set with its tasks, and the number of its classes."""

    words: tuple[str, ...]
    classes: int


SETTINGS = {
    "caltech50": Setting(("data=imagefolder:caltech50", "scenario.tasks=5"), 50),
    "cifar100": Setting(("data=imagefolder:cifar100_part", "scenario.tasks=10"), 100),
}
TERMS: dict[str, tuple[str, str]] = {
    "rapf": ("method.theta=0", "no loss that keeps near classes apart"),
    "bofa": ("method.rank=100000", "later tasks learn in all directions"),
    "clap4clip": ("method.apart=0", "no loss that keeps classes apart"),
    "engine": ("method.rule=0", "no Gaussian rule"),
    "vis": ("method.hidden=0", "no mixer"),
}
"""What switches a method's defining term off, and that in words. ``proof`` has no such option."""


def words(setting: str, method: str, level: int, seed: int) -> tuple[str, ...]:
    """Return the words of a run that is not tuned yet."""
    found = SETTINGS[setting]
    budget = f"memory.budget={level * found.classes}"
    own = (*OWN.get(method, ()), *(KEPT if method in ADAPTERS else ()))
    return (*found.words, *WORDS, f"method={plug_in(method)}", *own, budget, f"seed={seed}")


def plug_in(method: str) -> str:
    """Return the name of a row's method, of which a row may be a variant."""
    return method.partition("-")[0]


def levels(method: str) -> tuple[int, ...]:
    """Return the exemplars per class that make a difference to a method, without 0 where it needs exemplars."""
    about = method_class(plug_in(method)).capabilities
    return LEVELS[1:] if about.needs_exemplars else LEVELS if about.uses_memory else LEVELS[:1]


def search(setting: str, method: str, level: int) -> Job:
    """Return a method's search at a memory size, on held-out training images of the first two tasks."""
    asked = (*words(setting, method, level, 0), *GRIDS.get(method, ()), "--trials", str(TRIALS))
    return Job(f"tune-{setting}-{method}-m{level}", asked, "tune")


def searches(bench: Bench, setting: str, method: str, level: int) -> list[Json | None]:
    """Return the finished search of a cell, None for a method with nothing to tune; empty before the search ends."""
    if method in NOTHING_TO_TUNE:
        return [None]
    return list(bench.kept([search(setting, method, level)]).values())


def run(setting: str, method: str, level: int, seed: int, found: Json | None) -> Job:
    """Return a run with the settings that a search found."""
    asked = words(setting, method, level, seed)
    if found is not None:
        tuned = [f"{key}={value}" for key, value in found["values"].items()]
        asked = (*asked, *tuned, f"tuned_on={found['tuned_on']}")
    return Job(f"{setting}-{method}-m{level}-s{seed}", asked, held_out=HELD_OUT)


def switched(method: str, found: Json | None) -> tuple[Job, Job]:
    """Return two tasks of caltech50 with and without a method's defining term."""
    job = run("caltech50", method, max(levels(method)), 0, found)
    asked = tuple("scenario.tasks=2" if word.startswith("scenario.tasks=") else word for word in job.words)
    off, _ = TERMS[method]
    without = tuple(word for word in asked if word.partition("=")[0] != off.partition("=")[0])
    return Job(f"term-{method}-on", asked), Job(f"term-{method}-off", (*without, off))


def parts(bench: Bench) -> Iterator[list[Iterable[Job]]]:
    """Yield chains of jobs, one part after another: in each setting, first those that train no whole tower."""
    frozen = tuple(method for method in METHODS if method not in TRAINED)
    first, second = SETTINGS
    yield from cells(bench, first, frozen)
    found = {method: searches(bench, first, method, max(levels(method))) for method in TERMS}
    yield [switched(method, one) for method, known in found.items() for one in known]
    yield from cells(bench, first, TRAINED)
    yield from cells(bench, second, frozen)
    yield from cells(bench, second, TRAINED)


def cells(bench: Bench, setting: str, methods: Sequence[str]) -> Iterator[list[Iterable[Job]]]:
    """Yield the chains of all cells in one order of the classes, then in the others."""
    for seed in SEEDS:
        yield [cell(bench, setting, method, level, seed) for method in methods for level in levels(method)]


def cell(bench: Bench, setting: str, method: str, level: int, seed: int) -> Iterator[Job]:
    """Yield a cell's search, then its run in an order of the classes."""
    if method not in NOTHING_TO_TUNE:
        yield search(setting, method, level)
    for found in searches(bench, setting, method, level):
        yield run(setting, method, level, seed, found)


def finished(bench: Bench) -> dict[str, Json]:
    """Return the runs that are there, by name."""
    jobs: list[Job] = []
    for setting in SETTINGS:
        for method in METHODS:
            for level in levels(method):
                for found in searches(bench, setting, method, level):
                    jobs += [run(setting, method, level, seed, found) for seed in SEEDS]
                    if setting == "caltech50" and method in TERMS and level == max(levels(method)):
                        jobs += switched(method, found)
    return bench.kept(jobs)


def main() -> None:
    """Run what is missing and write the page."""
    bench = Bench.from_arguments(__doc__ or "", HERE / "rivals", "caltech50", "cifar100", "imagenet1k-sample")
    cifar_part(bench.scratch / "cifar100", bench.scratch / "cifar100_part")
    (HERE / "rivals.md").write_text(rivals_page.page(finished(bench)), encoding="utf-8")
    for chains in parts(bench):
        for _ in bench.follow(chains):
            (HERE / "rivals.md").write_text(rivals_page.page(finished(bench)), encoding="utf-8")


if __name__ == "__main__":
    main()
