"""What the second reference of a run, the frozen features, costs compared with the rest of the run.

    python -m benchmarks.references [--epochs 5] [--rounds 3] [KEY=VALUE ...]

One thread, the processor's seconds of the process: those of the reference, over those of the rest of the run. By
default gdro on the emoji pictures with ``lite`` as ``everclip train`` takes them, ten tasks. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from everclip.config import load_config
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training import frozen, loop


def measured(words: list[str], out: Path) -> tuple[float, float, dict[str, Any]]:
    """The processor's seconds of the reference and of the rest of a run, and its results."""
    spent, reference = [0.0], frozen.reference

    def timed(*arguments: Any) -> dict[str, Any]:
        start = time.process_time()
        found = reference(*arguments)
        spent[0] += time.process_time() - start
        return found

    start = time.process_time()
    frozen.reference = timed
    try:
        with Run.open(resolve(load_config([*words, "references=all", f"out={out}"]))) as run:
            results = loop.train(run, Progress(quiet=True))
    finally:
        frozen.reference = reference
    return spent[0], time.process_time() - start - spent[0], results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = ["device=cpu", f"train.epochs={arguments.epochs}", *arguments.words]
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            reference, rest, results = measured(words, Path(folder) / str(number))
            ratios.append(reference / rest)
            print(
                f"reference {reference:.1f} s, the rest of the run {rest:.1f} s: {ratios[-1]:.1%};"
                f" frozen features {results['frozen_features']:.1%}, this run {results['last']:.1%}",
                flush=True,
            )
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    print(json.dumps({"reference": round(median(ratios), 4)} | machine | vars(arguments)))


if __name__ == "__main__":
    main()
