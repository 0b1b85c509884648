"""What a checkpoint costs: the pause of a run per GB, and how long it takes to continue from one.

    python -m benchmarks.saving [--gb 2] [--rounds 3] [--folder DIR]

Weights and AdamW's moments of random numbers go through ``Store.commit`` as a run's do: written, hashed and flushed to
the disk. Continuing finds the newest checkpoint, checks every file and reads it, as ``restore.read`` does. Both are
compared with a plain ``torch.save`` of the same with fsync, and ``torch.load``; all in turn, medians of the rounds and
of their ratios. Goals: a pause of at most 1.5 s a GB; 2 GB read in at most 5 s. Seconds are by the clock and, in
brackets, the processor's. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from benchmarks.jobs import machine
from everclip.system.atomic import sync
from everclip.system.checkpoint import Place, Store
from everclip.training.restore import STATE, WEIGHTS


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that pass, and the processor's."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


def measured(gigabytes: float, rounds: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """What each round took."""
    count = int(gigabytes * 1e9 / 3 / 4 / 64)
    weights, *moments = ({str(number): torch.randn(count) for number in range(64)} for _ in range(3))
    store, plain = Store(folder, 2), folder / "plain.pt"

    def write(target: Path) -> None:
        save_file(weights, target / WEIGHTS)
        torch.save({"optimizer": moments}, target / STATE)

    def save_plainly() -> None:
        torch.save([weights, *moments], plain)
        sync(plain)

    def go_on() -> None:
        (place,) = store.newest()
        load_file(store.folder(place) / WEIGHTS)
        torch.load(store.folder(place) / STATE, weights_only=True, map_location="cpu")

    taken: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("pause", "torch.save", "go_on", "torch.load")
    }
    for number in range(rounds):
        place = Place(number + 1)
        taken["pause"].append(seconds(lambda place=place: store.commit(place, write)))
        taken["torch.save"].append(seconds(save_plainly))
        taken["go_on"].append(seconds(go_on))
        taken["torch.load"].append(seconds(lambda: torch.load(plain, weights_only=True)))
    shutil.rmtree(folder)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=2.0, help="of a checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/saving"))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    taken = measured(wanted.gb, wanted.rounds, wanted.folder)
    found: dict[str, float] = {}
    for name, rows in taken.items():
        passed, used = (median(column) for column in zip(*rows, strict=True))
        print(f"{name}: {passed:.2f} s ({used:.2f})")
        found[name], found[f"{name}_processor"] = round(passed, 2), round(used, 2)
    for ours, theirs in (("pause", "torch.save"), ("go_on", "torch.load")):
        pairs = zip(taken[ours], taken[theirs], strict=True)
        found[f"{ours}_ratio"] = round(median(own[0] / other[0] for own, other in pairs), 2)
    found["pause_a_gb"] = round(found["pause"] / wanted.gb, 2)
    print(json.dumps(found | {"gb": wanted.gb, "rounds": wanted.rounds, "machine": machine()}))


if __name__ == "__main__":
    main()
