"""The paper's Figure 1 on the model and the images that need no hub: accuracy against memory, one panel a data set.

    EVERCLIP_DATA=/folder/with/caltech50+pacs128 python -m benchmarks.figure1 [--jobs 2] [PANEL ...]

sweeps the grids below one after another, one thread a run, and draws docs/figure1/. It may be stopped at any time:
what has finished is in docs/figure1/runs (config and results of each run, and what was tuned), and is not run again.
Runs work in ``--scratch``, so that no path of a machine gets into a result.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.jobs import machine, pictures

KEPT = Path(__file__).parents[1] / "docs" / "figure1"
COMMON = (
    "model=lite",
    "image_size=96",
    "tune=top:1",
    "cache.shared=true",
    "cache.views=4",
    "seed=0..1",
)
CLASSES = "method=gcl,gdro,ewc,icarl,der_expand,memo,foster,co2l,finetune,zero_shot,ncm,ridge,ranpac,joint"
DOMAINS = ("method=gcl,gdro,cassle,zero_shot,joint", "scenario.kind=domain-incremental")
TUNE = ("--tune", "all", "--trials", "24")
PANELS = {
    "emoji-domains": ("data=emoji", *DOMAINS, "memory.budget=0,20,200"),
    "pacs": ("data=domainfolder:pacs_part", *DOMAINS, "memory.budget=0,7,70"),
    "emoji": ("data=emoji", CLASSES, "memory.budget=0,100,1000"),
    "caltech50": ("data=imagefolder:caltech50", CLASSES, "memory.budget=0,50,500"),
}
"""Each method is tuned at each memory size, within as many trials, epochs included.

Budgets are 0, 1 and 10 exemplars for each class; in the domain-incremental panels, for each class of all domains."""
SWEPT = "swept"
"""Folder of the sweeps in the scratch folder, where links to the pictures have a panel's name."""
FILES = ("config.toml", "results.json", "tuned.toml")
"""What is kept of a run, and of a search."""


def command(panel: str) -> list[str]:
    """The words of ``everclip`` that sweep a panel."""
    return ["sweep", *PANELS[panel], *COMMON, f"out={SWEPT}/{panel}", *TUNE]


def copy(source: Path, target: Path) -> int:
    """Copy what is kept of the finished runs and searches of one folder to another; returns how many are new."""
    new = 0
    for done in (*source.glob("*/results.json"), *source.glob("tune/*/tuned.toml")):
        there = target / done.parent.relative_to(source)
        if not (there / done.name).exists():
            there.mkdir(parents=True, exist_ok=True)
            for name in (name for name in FILES if name != done.name and (done.parent / name).exists()):
                shutil.copyfile(done.parent / name, there / name)
            shutil.copyfile(done, there / done.name)  # last: it marks the run as finished
            new += 1
    return new


def sweep(panel: str, scratch: Path, jobs: int) -> int:
    """Run what a panel lacks, and keep what has finished, whatever ended the sweep."""
    kept, swept = KEPT / "runs" / panel, scratch / SWEPT / panel
    copy(kept, swept)
    words = [*command(panel), "--retry", "--jobs", str(jobs), "--threads", "1"]
    try:
        return subprocess.run([sys.executable, "-m", "everclip", *words], cwd=scratch, check=False).returncode
    finally:
        print(f"{panel}: {copy(swept, kept)} new results in {kept}", file=sys.stderr)
        for checkpoints in swept.glob("*/checkpoints"):
            if (checkpoints.parent / "results.json").exists():
                shutil.rmtree(checkpoints)  # a hundred runs' checkpoints would fill a disk


def draw() -> None:
    """The page and its figures, from what is kept."""
    words = ["report", "runs/*", "-o", "index.html", "--figures", "figures"]
    subprocess.run([sys.executable, "-m", "everclip", *words], cwd=KEPT, check=True)


def main() -> int:
    """Sweep and draw; exit code 0 when every run is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("panels", nargs="*", metavar="PANEL", help=f"of {', '.join(PANELS)} (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--scratch", type=Path, default=Path("runs/figure1"), help="work goes here")
    arguments = parser.parse_args()
    unknown = [panel for panel in arguments.panels if panel not in PANELS]
    if unknown:
        parser.error(f'no panel "{unknown[0]}": write {", ".join(PANELS)}')
    scratch = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    pictures(Path(os.environ["EVERCLIP_DATA"]).resolve(), scratch)
    print(f"on {machine()}", file=sys.stderr)
    failed = 0
    for panel in arguments.panels or PANELS:
        failed |= sweep(panel, scratch, arguments.jobs)
    draw()
    return failed


if __name__ == "__main__":
    sys.exit(main())
