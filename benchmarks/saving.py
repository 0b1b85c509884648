"""What a checkpoint costs: the pause of a run for each GB, beside a plain torch.save of the same.

    python -m benchmarks.saving [--gb 1] [--rounds 5] [--folder DIR]

Weights and AdamW's moments of random numbers go through ``Store.commit`` as a run's do: copied, written, hashed and
brought to the disk. Prints the median pause in seconds a GB, and those of the plain file and of verifying.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.jobs import machine
from everclip.checkpoint import Place, Store, verify
from everclip.durable import sync


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=1.0, help="of a checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/saving"))
    arguments = parser.parse_args()
    count = int(arguments.gb * 1e9 / 3 / 4 / 64)
    parts = [{str(number): torch.randn(count) for number in range(64)} for _ in range(3)]
    weights, moments = parts[0], parts[1:]
    size = sum(value.nbytes for part in parts for value in part.values()) / 1e9
    store = Store(arguments.folder, 2)

    def write(folder: Path) -> None:
        save_file({name: value.clone() for name, value in weights.items()}, folder / "weights.safetensors")
        torch.save({"optimizer": moments}, folder / "state.pt")

    def plain() -> None:
        torch.save(parts, arguments.folder / "plain.pt")
        sync(arguments.folder / "plain.pt")

    rows: list[tuple[float, float, float]] = []
    for number in range(arguments.rounds):
        place = Place(number + 1)
        saved = seconds(lambda place=place: store.commit(place, write))
        checked = seconds(lambda place=place: verify(store.folder(place)))
        rows.append((saved, seconds(plain), checked))
    shutil.rmtree(arguments.folder)
    median = [round(statistics.median(column) / size, 2) for column in zip(*rows, strict=True)]
    names = ("pause", "torch.save and fsync", "verify")
    print(
        json.dumps(
            {
                "machine": machine(),
                "gb": round(size, 2),
                "seconds_a_gb": dict(zip(names, median, strict=True)),
            }
        )
    )


if __name__ == "__main__":
    main()
