"""The table of the six basic methods: what they reach at three memory sizes, and what carries the result.

    EVERCLIP_DATA=/folder/with/caltech50/and/pacs128 python -m benchmarks.table

tunes each method at each memory size on the first two tasks of caltech50, trains all cells with the rates found,
and writes benchmarks/table.md. About two and a half hours on two cores; what is in benchmarks/table/ is not run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import table_page
from benchmarks.jobs import Bench, Job, Json

HERE = Path(__file__).parent
LEVELS = (0, 1, 10)
"""Exemplars a class, when all classes are seen."""
METHODS = ("finetune", "clip", "gcl", "gdro")
TUNED = "caltech50"
SEARCH = ("scenario.validation=0.4", "train.lr=3e-5,1e-4,3e-4", "train.lr_text=0,2e-5,6e-5")


@dataclass(frozen=True)
class Setting:
    """One scenario: how it is trained, how many classes it has, and over which seeds."""

    name: str
    words: tuple[str, ...]
    classes: int
    epochs: int
    seeds: tuple[int, ...]

    def cell(self, method: str, level: int, seed: int, extra: Sequence[str] = ()) -> tuple[str, ...]:
        """Config words of one run, whose epochs are the same at every memory size; joint training has its own."""
        memory = f"memory.budget={level * self.classes}"
        length = () if method == "joint" else (f"train.epochs={self.epochs}",)
        return (*self.words, f"method={method}", memory, *length, f"seed={seed}", *extra)


CALTECH = Setting(TUNED, ("data=imagefolder:caltech50", "image_size=96", "scenario.tasks=10"), 50, 3, (0, 1))
SETTINGS = (
    CALTECH,
    Setting(
        "pacs",
        ("data=domainfolder:pacs_part", "image_size=96", "scenario.kind=domain-incremental"),
        *(7, 3, (0, 1)),
    ),
    Setting("emoji", ("data=emoji", "image_size=96", "scenario.tasks=10"), 100, 5, (0,)),
    Setting("emoji-dil", ("data=emoji", "image_size=96", "scenario.kind=domain-incremental"), *(20, 5, (0,))),
)
ABLATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "gdro": {
        "as it is": (),
        "identity in place of the hinge": ("method.surrogate=identity",),
        "no DRO": ("method.dro=none",),
        "estimators reset at each task": ("method.carry_over=false",),
        "gamma 1 (no average)": ("method.gamma=1", "method.gamma_class=1"),
        "lambda 0.01": ("method.strength=0.01",),
        "lambda 1": ("method.strength=1",),
        "margin 0.1": ("method.margin=0.1",),
        "margin 0.6": ("method.margin=0.6",),
        "centred image features": ("center=true",),
        "no augmentation": ("train.augment=none",),
    },
    "gcl": {
        "as it is": (),
        "estimators reset at each task": ("method.carry_over=false",),
        "gamma 1 (no average)": ("method.gamma=1",),
        "centred image features": ("center=true",),
        "no augmentation": ("train.augment=none",),
    },
}


def levels(method: str) -> tuple[int, ...]:
    """Memory sizes that make a difference to a method."""
    return LEVELS if method in METHODS else (0,)


def tuning() -> Iterator[Job]:
    """A search for each method and memory size."""
    for method in (*METHODS, "joint"):
        for level in levels(method):
            words = [*CALTECH.cell(method, level, 0), *SEARCH]
            yield Job(f"tune-{method}-m{level}", tuple(words), "tune")


def cells(tuned: dict[str, Json]) -> Iterator[Job]:
    """Every run of the table, each method at the rates found for it."""
    for setting in SETTINGS:
        for seed in setting.seeds:
            for method in ("zero_shot", *METHODS, "joint"):
                for level in levels(method):
                    name = f"{setting.name}-{method}-m{level}-s{seed}"
                    yield Job(name, setting.cell(method, level, seed, rates(tuned, method, level)))


def rates(tuned: dict[str, Json], method: str, level: int) -> list[str]:
    """The words of a method's tuned rates, and where they come from."""
    if method == "zero_shot":
        return []
    found = tuned[f"tune-{method}-m{level}"]
    return [*(f"{key}={value}" for key, value in found["values"].items()), f"tuned_on={found['tuned_on']}"]


def ablations(tuned: dict[str, Json]) -> Iterator[Job]:
    """One exemplar a class, one seed, one change at a time, at the rates of the method as it is."""
    for method, changes in ABLATIONS.items():
        for index, words in enumerate(changes.values()):
            if words:
                name = f"ablation-{method}-{index}"
                extra = [*rates(tuned, method, 1), *words]
                yield Job(name, CALTECH.cell(method, 1, 0, extra))


def main() -> None:
    """Run what is missing and write the page."""
    bench = Bench.from_arguments(__doc__ or "", HERE / "table")
    tuned = bench.run(list(tuning()))
    every = list(cells(tuned))
    first = [job for job in every if not job.name.startswith("emoji")]
    results = bench.run(first) | bench.run(list(ablations(tuned))) | bench.run(every)
    page = table_page.page(tuned, results)
    (HERE / "table.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
