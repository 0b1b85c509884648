"""The table of all methods: one encoder, one data set, one memory, one number of epochs.

    EVERCLIP_DATA=/folder/with/caltech50/pacs128/imagenet1k-sample python -m benchmarks.methods

tunes the rate of every trained method on the first two tasks of caltech50, trains all methods with no memory and with
five exemplars a class, switches the defining term of each off in two tasks, and writes benchmarks/methods.md. Two to
three hours on two cores; what is in benchmarks/methods/ is not run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import methods_page
from benchmarks.jobs import Bench, Job, Json
from everclip import plugins
from everclip.methods.base.registry import method_class

HERE = Path(__file__).parent
EXEMPLARS = 5
CALTECH = ("data=imagefolder:caltech50", "image_size=96", "scenario.tasks=5", "train.epochs=2")
PACS = (
    "data=domainfolder:pacs_part",
    "image_size=96",
    "scenario.kind=domain-incremental",
    "train.epochs=2",
)
CLASSES = {"caltech50": 50, "pacs": 7}
SETTINGS = {"caltech50": CALTECH, "pacs": PACS}
SEARCH = ("scenario.validation=0.4", "train.lr=3e-5,1e-4,3e-4")
HELD_OUT = ("--data", "imagenet:imagenet")
TWO_SEEDS = {"gcl", "gdro", "icarl", "ranpac"}
UNTRAINED = {"zero_shot", "ncm", "ridge", "slda", "ranpac"}
NO_MEMORY = {"zero_shot", "joint", "cassle"}
"""Two references, and a method that keeps no exemplars unless asked to."""
RIVALS = ("fecam", "layup", "rail", "bofa", "rapf", "vis", "proof", "clap4clip", "engine")
"""Those of 2023 to 2026 that ``lite`` can carry; benchmarks.rivals measures them."""
LEFT_OUT = {"cmoa", "mg_clip", "coda_prompt", "moe_adapters", "spu", *RIVALS}
"""The first five need a transformer, which ``lite`` is not."""
TERMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ewc": ((), ("method.strength=0",)),
    "lwf": ((), ("method.image_weight=0", "method.text_weight=0")),
    "zscl": (
        (),
        ("method.image_weight=0", "method.text_weight=0", "method.l2=0", "method.ensemble_every=none"),
    ),
    "dark_er": ((), ("method.alpha=0",)),
    "wise_ft": ((), ("method.alpha=1",)),
    "icarl": (("method.loss=ce",), ("method.distill_weight=0",)),
    "der_expand": ((), ("method.aux_weight=0",)),
    "memo": ((), ("method.aux_weight=0",)),
    "foster": ((), ("method.boost=false",)),
    "co2l": ((), ("method.distill=0",)),
    "cassle": ((), ("method.predictor=none",)),
    "cclis": ((), ("method.distill=0",)),
}
"""What a method runs with, and what then switches its defining term off."""


def every() -> list[str]:
    """The methods of the package; wise_ft is a wrapper and stands for its default."""
    return [name for name in plugins.names("methods") if name not in LEFT_OUT]


def levels(method: str, setting: str = "caltech50") -> tuple[int, ...]:
    """Exemplars per class that make a difference to a method, without 0 where it needs exemplars."""
    if setting == "caltech50" and method_class(method).capabilities.needs_exemplars:
        return (EXEMPLARS,)
    uses = method not in NO_MEMORY and method_class(method).capabilities.uses_memory
    return (0, EXEMPLARS) if uses else (0,)


def words(setting: str, method: str, level: int, seed: int, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Config words of one run."""
    budget = f"memory.budget={level * CLASSES[setting]}"
    if method == "joint":  # one task, with the epochs that it needs
        extra = (*extra, f"train.epochs={method_class(method).Config.recommends['epochs']}")
        settings = [word for word in SETTINGS[setting] if not word.startswith("train.epochs=")]
        return (*settings, f"method={method}", budget, f"seed={seed}", *extra)
    return (*SETTINGS[setting], f"method={method}", budget, f"seed={seed}", *extra)


def tuning() -> Iterator[Job]:
    """A search for each trained method and memory."""
    for method in every():
        for level in levels(method) if method not in UNTRAINED else ():
            yield Job(f"tune-{method}-m{level}", (*words("caltech50", method, level, 0), *SEARCH), "tune")


def rates(tuned: dict[str, Json], method: str, level: int) -> list[str]:
    """The words of a method's tuned rate, and where it comes from; nothing where its search failed."""
    # on PACS, whose domains share their classes, methods that need exemplars on caltech50 run without them too
    found = tuned.get(f"tune-{method}-m{level if level in levels(method) else EXEMPLARS}")
    if found is None:
        return []
    return [*(f"{key}={value}" for key, value in found["values"].items()), f"tuned_on={found['tuned_on']}"]


def cells(tuned: dict[str, Json]) -> Iterator[Job]:
    """Every run of the table."""
    for setting in SETTINGS:
        for method in every():
            for level in levels(method, setting):
                for seed in (0, 1) if method in TWO_SEEDS and setting == "caltech50" else (0,):
                    name = f"{setting}-{method}-m{level}-s{seed}"
                    run = words(setting, method, level, seed, rates(tuned, method, level))
                    yield Job(name, run, held_out=HELD_OUT)


def switched_off(tuned: dict[str, Json]) -> Iterator[Job]:
    """Two tasks with and without each method's defining term; memory where the method needs one."""
    for method, (form, term) in TERMS.items():
        level = max(levels(method))
        extra = [*rates(tuned, method, level), "scenario.tasks=2"]
        run = [word for word in words("caltech50", method, level, 0, extra) if word != "scenario.tasks=5"] + [
            *form
        ]
        yield Job(f"term-{method}-on", tuple(run))
        yield Job(f"term-{method}-off", (*run, *term))


def main() -> None:
    """Run what is missing and write the page."""
    bench = Bench.from_arguments(__doc__ or "", HERE / "methods")
    tuned = bench.run(list(tuning()))
    wanted = list(cells(tuned))
    photographs = [job for job in wanted if job.name.startswith("caltech50")]
    results = bench.run(photographs) | bench.run(list(switched_off(tuned))) | bench.run(wanted)
    page = methods_page.page(tuned, results)
    (HERE / "methods.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
