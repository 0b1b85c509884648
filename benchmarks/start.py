"""How long everclip takes to start: its help, the check of a config, and the first training step.

    python -m benchmarks.start [--rounds 9] [--steps 3]

Each is a process of its own, on one thread; variants in turn in every round, medians of the rounds. Help and checks are
given as multiples of ``python -c pass`` in processor seconds (a busy machine makes a process late but not dearer), and
Python is asked whether they import torch. The first step is that of `everclip train` (`lite` on the emoji pictures), of
`lite` at 96 px and of ViT-B-32 with random weights on 90 pictures (batches of 4; `lite` without the closed forms on
frozen features), up to the end of that step: the model is built, all pictures are read, the pretrained model is tested
on the test set, the first checkpoint is written. ``import torch`` and ``import open_clip`` are measured, too.
Goals: help at most 0.3 s, a check at most 0.5 s, both without torch; the first step of `lite` at most 3.5 s, others at
most 3 s after the import. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.children import Child, python
from benchmarks.jobs import machine

PLAIN = ["-c", "pass"]
REFUSED = 2
STARTS: dict[str, tuple[list[str], int]] = {
    "help": (["-m", "everclip", "--help"], 0),
    "help_train": (["-m", "everclip", "train", "--help"], 0),
    "config": (["-c", "from everclip.config import load_config; load_config(['cifar100', 'seed=1'])"], 0),
    "config_refused": (["-m", "everclip", "train", "train.lr=-1"], REFUSED),
}
IMPORTS = {"torch": ["-c", "import torch"], "open_clip": ["-c", "import open_clip"]}
VIT_BATCH = 4
"""So few that the step itself is a small part."""


def first_step(words: list[str]) -> None:
    """Run ``everclip train WORDS`` up to the end of its first training step, and end this process there."""
    from everclip import __main__ as everclip
    from everclip.system.progress import Progress

    def until_first(self: Progress, note: str = "", count: int = 1) -> None:
        """End the process after a step, once the processor's seconds of the process so far are printed."""
        if note.startswith("loss"):
            print(time.process_time(), flush=True)
            os._exit(0)

    Progress.step = until_first
    sys.argv = ["everclip", "train", *words]
    sys.exit(everclip.main())


def save_random(model: str, folder: Path) -> None:
    """Write a data set of noise and the model with random weights (none for `lite`), in this process."""
    from benchmarks.step import pictures, weights

    pictures(folder / "data")
    weights(model, folder / "model")


def imports_torch(words: list[str], code: int) -> bool:
    """Whether Python imports torch for these words."""
    listed = python(["-X", "importtime", *words], code).errors
    return any(line.rpartition("|")[2].strip() == "torch" for line in listed.splitlines())


def starts(rounds: int) -> dict[str, float]:
    """Multiples of a Python that does nothing."""
    every = {"pass": (PLAIN, 0), **STARTS}
    taken: dict[str, list[Child]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, (words, code) in every.items():
            taken[name].append(python(words, code))
    found = {}
    for name, children in taken.items():
        own, least = median(child.seconds for child in children), min(child.wall for child in children)
        times = median(
            child.seconds / plain.seconds for child, plain in zip(children, taken["pass"], strict=True)
        )
        torch = imports_torch(*every[name])
        print(f"| {name} | {own:.3f} | {least:.3f} | {times:.1f} | {'yes' if torch else 'no'} |", flush=True)
        found[name] = round(own, 3)
        found[f"{name}_times_pass"] = round(times, 2)
    return found


def steps(rounds: int, folder: Path) -> dict[str, float]:
    """Seconds to the end of the first step, over and above importing torch."""
    python(["-m", "benchmarks.start", "--save", str(folder)])
    vit = [f"data=imagefolder:{folder / 'data'}", f"model=local-dir:{folder / 'model'}", "scenario.tasks=1"]
    vit.append(f"train.batch_size={VIT_BATCH}")
    few = [vit[0], "model=lite", "image_size=96", "scenario.tasks=1", "references=none", vit[-1]]
    configs = {"demo": [], "lite": few, "vit_b_32": vit}
    taken: dict[str, list[Child]] = {name: [] for name in (*IMPORTS, *configs)}
    for number in range(rounds + 1):  # the first one warms up: `lite` is built at its first use
        children = {name: python(words) for name, words in IMPORTS.items()}
        for name, words in configs.items():
            out = f"out={folder / f'{name}{number}'}"
            children[name] = python(["-m", "benchmarks.start", "--first", *words, "device=cpu", out])
        if number:
            for name, child in children.items():
                taken[name].append(child)
    found = {}
    for name, children in taken.items():
        own, least = median(child.seconds for child in children), min(child.wall for child in children)
        pairs = zip(children, taken["torch"], strict=True)
        after = median(child.seconds - torch.seconds for child, torch in pairs)
        print(f"| {name} | {own:.2f} | {least:.2f} | {after:.2f} |", flush=True)
        found[f"import_{name}" if name in IMPORTS else f"first_step_{name}"] = round(own, 2)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="rounds of first steps")
    parser.add_argument("--first", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="ViT-B-32", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.first:
        first_step(wanted.first)
    if wanted.save:
        save_random(wanted.model, wanted.save)
        return
    found = starts(wanted.rounds)
    with tempfile.TemporaryDirectory() as folder:
        found |= steps(wanted.steps, Path(folder))
    print(json.dumps(found | {"machine": machine(), "rounds": wanted.rounds, "steps": wanted.steps}))


if __name__ == "__main__":
    main()
