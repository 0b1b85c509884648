"""The paper's Figure 1 with a model and pictures that need no hub, in three panels.

    EVERCLIP_DATA=/folder/with/caltech50+pacs128+cifar100 python -m benchmarks.figure1 [--panel a|b|c] [--device cuda]

a: CIFAR-100, accuracy after the last of ten tasks against the memory. b: the same on 50 classes of Caltech photographs
and on the emoji. c: accuracy after each domain of PACS and of the emoji's vendors. Every method is tuned at every
memory size within the same number of trials, on training images alone.

It prints the hours that are left, then sweeps one set after another, one thread per run, and draws docs/figure1/. It
may be stopped or killed at any time: finished runs and searches, and the finished trials of a search that was stopped,
are in docs/figure1/runs and are not run again. Runs work in ``--scratch``, so that no path of a machine gets into a
result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks import figure1_page
from benchmarks.jobs import machine, packed, pictures
from everclip.runs.finished import answers, right
from everclip.system.arrays import MOST_ROWS

BASE = Path(__file__).with_name("figure1.toml")
KEPT = Path(__file__).parents[1] / "docs" / "figure1"
HELD = "scenario.validation=0.3"
"""A fifth of the images is too few to score searches on. With half of them held out, trials have half of a run's steps
per epoch, and without exemplars more steps forget more: EWC chose values that lost twenty points in the run."""
FIVE, TEN = ((HELD, f"scenario.validation_tasks={count}") for count in (5, 10))
"""Searches see five of ten tasks, as a setting that forgets may look good after two; on small sets without exemplars,
where each task takes its toll, they see all ten, and on the photographs with one per class as well."""
HEADS = ("method.finetune.head=text,linear", "method.ewc.head=text,linear")
"""The paper's cross-entropy and the usual EWC have a linear head; ours begin with the text tower as well."""
WITHOUT = (
    "method=zero_shot,finetune,clip,ewc,co2l,gcl,gdro,ridge,slda,multilayer_lda",
    "method.slda.eps=gcv",
    "method.multilayer_lda.adapt=none,finetune",
    *(*HEADS, "memory.budget=0"),
)
WITH = ("method=finetune,clip,ewc,der_expand,memo,icarl,co2l,foster,gcl,gdro", *HEADS)
SMALL, LARGE = ("method=finetune,clip,ewc,icarl,gcl,gdro", *HEADS), ("method=der_expand,memo,co2l,foster",)
"""The same in two: the paper's methods and its baselines, and others, whose trials take longest."""
OURS = ("method=multilayer_lda", "method.adapt=finetune", *FIVE)
"""In sets of its own, at the memory sizes where it uses exemplars; below these it is the same as without."""
LAYUP = ("method=layup", "method.adapt=none,finetune", "memory.budget=0")
"""The strongest closed form of others, also with a tower that trains in the first task, as its authors may have it."""
JOINT = ("method=joint", "memory.budget=0")
LINEAR = (*JOINT, "method.loss=finetune", "method.options.head=linear")
"""Joint training has both heads as well, each with its own search."""
PLAIN = ("scenario.kind=domain-incremental", "seed=0..2", HELD)
"""How domains are learned."""
PROBES = ("method.cassle.probe=current,mixed", *PLAIN)
"""Both probes of the paper's own rival there."""
DOMAINS = (
    "method=zero_shot,finetune,clip,icarl,gcl,gdro,cassle,ridge,slda,multilayer_lda",
    *("method.slda.eps=gcv", "method.multilayer_lda.adapt=none,finetune", "memory.per_class=0,10", *PROBES),
)
DOMAINS_ONE = ("method=finetune,clip,icarl,gcl,gdro,cassle", "memory.per_class=1", *PROBES)
"""One exemplar per class is in no panel, so it comes last; what is not here uses none at that size."""
ORDERS = ("seed=0..2", "scenario.order=seed")
"""Three seeds, which are three orders of the classes."""
TERMS = ("method=gcl,gdro", "method.carry_over=false")
UNWEIGHTED = ("method=gdro", "method.dro=none", "method.carry_over=true,false")
NO_WEIGHTS = ("method.strength=0.1", "method.omega=unbiased", "method.weight_clip=none")
"""The parts of the paper's methods, each switched off: estimators that carry over, and weights of classes, whose
constants are not searched where there are no weights. The whole methods are in the set ``caltech50-1``."""


class Set(NamedTuple):
    """A sweep: its panel, the words of its grid, where searches of the image tower's rate begin, and their trials.

    Without exemplars and for new classes 3e-5 is near what searches choose; with them, and for joint training, 3e-4.
    Fifteen trials try each constant of each method once, where no grid has to grow.
    """

    panel: str
    words: tuple[str, ...]
    lr: float = 3e-4
    trials: int = 15
    epochs: int | None = None
    """Where searches of the length begin; None: at the method's own."""


def _classes(
    data: str, small: int, large: int, seen: tuple[str, ...], epochs: int | None = None
) -> dict[str, Set]:
    """Return the sets of panel b on one data set: no memory, and two sizes of it, shared among the classes seen.

    Args:
        seen: the tasks of searches with the small memory.
    """
    name, data = data.rpartition(":")[2], f"data={data}"
    words = (data, *WITH, *ORDERS)
    return {
        f"{name}-0": Set("b", (data, *WITHOUT, *TEN, *ORDERS), 3e-5, epochs=epochs),
        f"{name}-joint": Set("b", (data, *JOINT, *TEN, *ORDERS)),
        f"{name}-joint-linear": Set("b", (data, *LINEAR, *TEN, *ORDERS)),
        f"{name}-1": Set("b", (*words, *seen, f"memory.budget={small}"), epochs=epochs),
        name: Set("b", (*words, *FIVE, f"memory.budget={large}"), epochs=epochs),
        f"{name}-ours": Set("b", (data, *OURS, *ORDERS, f"memory.budget={large}"), epochs=epochs),
        f"{name}-layup": Set("b", (data, *LAYUP, *TEN, *ORDERS), 3e-5, epochs=epochs),
    }


def _cifar() -> dict[str, Set]:
    """Return the sets of panel a: many images per class, so fewer epochs and trials."""
    data = "data=cifar100:cifar100"
    return {
        "cifar100-0": Set("a", (data, *WITHOUT, *FIVE), 3e-5, 6, 1),
        "cifar100-layup": Set("a", (data, *LAYUP, *FIVE), 3e-5, 6, 1),
        "cifar100-joint": Set("a", (data, *JOINT, *FIVE), 3e-4, 6, 4),
        "cifar100-joint-linear": Set("a", (data, *LINEAR, *FIVE), 3e-4, 6, 4),
        "cifar100": Set("a", (data, *SMALL, *FIVE, "memory.budget=100,500,2000"), 3e-4, 6, 1),
        "cifar100-large": Set("a", (data, *LARGE, *FIVE, "memory.budget=100,500,2000"), 3e-4, 6, 1),
        "cifar100-ours": Set("a", (data, *OURS, "memory.budget=500,2000"), 3e-4, 6, 1),
    }


EMOJI, PACS = ("data=emoji", "scenario.validation_tasks=3"), "data=domainfolder:pacs128"
SETS = {
    # begun at 5 epochs, a third of the searches on so few images ended at their limit of 20
    **_classes("emoji", 100, 1000, FIVE, epochs=10),
    **_classes("imagefolder:caltech50", 50, 500, TEN),
    **{
        name: Set("b", ("data=imagefolder:caltech50", *words, *TEN, *ORDERS, "memory.budget=50"))
        for name, words in (("terms", TERMS), ("terms-unweighted", (*UNWEIGHTED, *NO_WEIGHTS)))
    },
    "emoji-domains": Set("c", (*EMOJI, *DOMAINS), 1e-4),
    "emoji-domains-layup": Set("c", (*EMOJI, *LAYUP, *PLAIN), 1e-4),
    "emoji-domains-joint": Set("c", (*EMOJI, *JOINT, *PLAIN)),
    # many images per class and domain, so fewer epochs and trials
    "pacs": Set("c", (PACS, *DOMAINS), 1e-4, 10, 2),
    "pacs-layup": Set("c", (PACS, *LAYUP, *PLAIN), 1e-4, 10, 2),
    "pacs-joint": Set("c", (PACS, *JOINT, *PLAIN), 3e-4, 10, 4),
    **_cifar(),
    "emoji-domains-1": Set("c", (*EMOJI, *DOMAINS_ONE), 1e-4),
    "pacs-1": Set("c", (PACS, *DOMAINS_ONE), 1e-4, 10, 2),
}
"""By name of the folder; the cheap ones first."""
SWEPT = "swept"
"""Folder of the sweeps in the scratch folder, where links to the pictures have a set's name."""
FILES = ("config.toml", "results.json", "tuned.toml")
"""What is kept of a run, and of a search."""


def command(name: str, device: str, scratch: Path) -> list[str]:
    """Write a set's config into the scratch folder, and return the words of ``everclip`` that sweep the set.

    Keys that the words set are not searched; searches begin at the values that the config sets.
    """
    found, file = SETS[name], scratch / f"{name}.toml"
    epochs = "" if found.epochs is None else f"epochs = {found.epochs}\n"
    text = f"extends = {json.dumps(str(BASE))}\n\n[train]\nlr = {found.lr}\n{epochs}"
    file.write_text(text, encoding="utf-8")
    trials = ("--tune", "all", "--trials", str(found.trials))
    return ["sweep", file.name, *found.words, f"device={device}", f"out={SWEPT}/{name}", *trials]


def changed(done: Path, there: Path) -> bool:
    """Whether a file is to be copied: a search of more trials ends in the same folder, with another outcome."""
    if not there.exists():
        return True
    return done.stat().st_mtime > there.stat().st_mtime and done.read_bytes() != there.read_bytes()


def copy(source: Path, target: Path) -> int:
    """Copy what is kept of the finished runs and searches of one folder to another; returns how many are new.

    Of a search that has not finished its finished trials are kept, so that it may go on elsewhere.
    """
    new = 0
    trials = (
        trial
        for trial in source.glob("tune/*/trial-*/results.json")
        if not (trial.parents[1] / "tuned.toml").exists()
    )
    for done in (*source.glob("*/results.json"), *source.glob("tune/*/tuned.toml"), *trials):
        there = target / done.parent.relative_to(source)
        if changed(done, there / done.name):
            there.mkdir(parents=True, exist_ok=True)
            for name in (name for name in FILES if name != done.name and (done.parent / name).exists()):
                shutil.copyfile(done.parent / name, there / name)
            if done.parent.parent == source and (found := answers(done.parent, MOST_ROWS)) is not None:
                (there / figure1_page.RIGHT).write_text(packed(right(found)) + "\n", encoding="utf-8")
            shutil.copyfile(done, there / done.name)  # last: it marks the run as finished
            new += 1
    return new


def minutes(name: str, device: str, scratch: Path) -> float | None:
    """Minutes that a set still takes, one run after another, as ``everclip sweep --dry-run`` estimates them."""
    words = [sys.executable, "-m", "everclip", *command(name, device, scratch), "--dry-run", "--json"]
    found = subprocess.run(words, cwd=scratch, check=True, stdout=subprocess.PIPE)
    return json.loads(found.stdout)["minutes"]


def sweep(name: str, device: str, scratch: Path, jobs: int) -> int:
    """Run what a set lacks, and keep what has finished, whatever ended the sweep."""
    kept, swept = KEPT / "runs" / name, scratch / SWEPT / name
    words = [
        *command(name, device, scratch),
        "--retry",
        "--drop-checkpoints",
        "--jobs",
        str(jobs),
        "--threads",
        "1",
    ]
    try:
        return subprocess.run([sys.executable, "-m", "everclip", *words], cwd=scratch, check=False).returncode
    finally:
        print(f"{name}: {copy(swept, kept)} new results in {kept}", file=sys.stderr)
        for search in kept.glob("tune/*/tuned.toml"):
            for trial in search.parent.glob("trial-*"):  # the search, now finished, says what they have said
                shutil.rmtree(trial)


def main() -> int:
    """Sweep and draw; exit code 0 when every run is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--panel", choices=("a", "b", "c"), help="one panel (default: all)")
    parser.add_argument("--set", choices=tuple(SETS), help="one set of a panel")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--scratch", type=Path, default=Path("runs/figure1"), help="work goes here")
    parser.add_argument(
        "--draw", action="store_true", help="draw the figure from the finished runs; train nothing"
    )
    arguments = parser.parse_args()
    wanted = [
        name
        for name, found in SETS.items()
        if arguments.panel in (None, found.panel) and arguments.set in (None, name)
    ]
    failed = 0
    if not arguments.draw:
        scratch = arguments.scratch.resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        source = Path(os.environ["EVERCLIP_DATA"]).resolve()
        pictures(source, scratch, "caltech50", "pacs128", "cifar100")
        for name in wanted:
            copy(KEPT / "runs" / name, scratch / SWEPT / name)
        print(f"on {machine()}, one run after another, about:", file=sys.stderr)
        every = 0.0
        for name in wanted:
            left = minutes(name, arguments.device, scratch)
            every += left or 0.0
            print(f"{name}: {'unknown' if left is None else f'{left / 60:.1f} hours'}", file=sys.stderr)
        print(f"in all: {every / 60:.1f} hours, {arguments.jobs} runs side by side", file=sys.stderr)
        for name in wanted:
            failed |= sweep(name, arguments.device, scratch, arguments.jobs)
    figure1_page.draw(KEPT)
    return failed


if __name__ == "__main__":
    sys.exit(main())
