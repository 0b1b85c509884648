"""Compare two processes of one run with two independent ones, and with one: time, results, bytes exchanged.

    python -m benchmarks.distributed [--model lite] [--batch 80] [--rounds 8]

A step of method=gdro, full fine-tuning in fp32, one thread a process:

    together    two processes, each with half of the batch
    apart       two processes at the same time, each a run of its own with half of the batch: nothing is exchanged
    alone       one process with the whole batch
    sharded     as together, with distributed.shard=true

All seven processes keep running; each round takes a step of `apart`, `together` and `sharded` in turn. A ratio is the
median over the rounds of `apart` over another: of the slower process's seconds by the clock, and of the processor
seconds of both. `loss` and `grad_norm` are the largest relative differences of `together` and `alone` over the first
five steps. Bytes are those that a process hands over in a step: features, gradients, and all else, which is the state.
`held` is the fraction of the trained weights, gradients and moments that a process of `sharded` has. The last line is
one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.step import Ours, pictures, weights
from everclip.distributed import launch
from everclip.models import fsdp

CHECKED = 5
"""Steps whose losses are compared."""
WIDE = 64
"""Least length of a row that counts as a feature."""


class Bytes:
    """Counts what a process hands over, by kind."""

    def __init__(self) -> None:
        self.counted = {"features": 0, "gradients": 0, "state": 0}
        gather, reduce = dist.all_gather, dist.all_reduce

        def gathering(found: list[torch.Tensor], own: torch.Tensor, *args: Any, **named: Any) -> Any:
            wide = own.is_floating_point() and own.ndim > 1 and own.shape[-1] >= WIDE
            self.counted["features" if wide else "state"] += own.nbytes
            return gather(found, own, *args, **named)

        def reducing(own: torch.Tensor, *args: Any, **named: Any) -> Any:
            self.counted["gradients" if own.is_floating_point() else "state"] += own.nbytes
            return reduce(own, *args, **named)

        dist.all_gather, dist.all_reduce = gathering, reducing


def worker(data: str, model: str, out: Path, batch: int, shard: bool) -> None:
    """Makes a step for each line on stdin, and answers with its numbers."""
    torch.set_num_threads(1)
    with launch.joined("cpu"):
        ours = Ours.of(data, model, "full", out, batch, "gdro", shard)
        here, all_of_it = (
            sum(form(parameter).numel() for parameter in ours.update.parameters)
            for form in (fsdp.local, lambda parameter: parameter)
        )
        counts = Bytes()
        for _ in sys.stdin:
            counts.counted |= dict.fromkeys(counts.counted, 0)
            work = ours.step("fp32")
            begun, spent = time.perf_counter(), time.process_time()
            work()
            seconds = [time.perf_counter() - begun, time.process_time() - spent]
            lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            line = [line for line in lines if line["event"] == "step"][-1]
            print(
                json.dumps(
                    {"seconds": seconds, "line": line, "bytes": counts.counted, "held": here / all_of_it}
                ),
                flush=True,
            )


def started(count: int, *words: str) -> list[subprocess.Popen[str]]:
    """Start the processes of one run, each with a folder of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    several = {"TORCHELASTIC_RUN_ID": "benchmark", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    found = []
    for rank in range(count):
        ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        found.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.distributed", "--work", *words, str(rank)],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | several | ranked,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return found


def step(processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """A step of all of them at once."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("step\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes if process.stdout is not None]
    return [json.loads(answer) for answer in answers]


def _slower(answers: list[dict[str, Any]]) -> float:
    return max(answer["seconds"][0] for answer in answers)


def _both(answers: list[dict[str, Any]]) -> float:
    return sum(answer["seconds"][1] for answer in answers)


def difference(one: list[float], two: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(mine - theirs) / abs(mine) for mine, theirs in zip(one, two, strict=True))


def measured(model: str, batch: int, rounds: int, folder: Path) -> dict[str, float]:
    """The ratios."""
    data, spec = pictures(folder / "data"), weights(model, folder / "model")

    def run(count: int, name: str, size: int, shard: str = "") -> list[subprocess.Popen[str]]:
        return started(count, data, spec, str(folder / name), str(size), shard)

    together, alone, sharded = (
        run(2, "together", batch),
        run(1, "alone", batch),
        run(2, "sharded", batch, "yes"),
    )
    apart = [*run(1, "apart", batch // 2), *run(1, "other", batch // 2)]
    try:
        lines = [[step(group)[0]["line"] for _ in range(CHECKED)] for group in (alone, together)]
        step(apart)
        joint, parts = step(together), step(sharded)
        ratios: dict[str, list[float]] = {}
        for _ in range(rounds):
            free, joint, parts = step(apart), step(together), step(sharded)
            said = []
            for name, seconds in (("clock", _slower), ("processor", _both)):
                spent = [seconds(answers) for answers in (free, joint, parts)]
                ratios.setdefault(name, []).append(spent[0] / spent[1])
                ratios.setdefault(f"sharded_{name}", []).append(spent[0] / spent[2])
                said.append(f"{name} {', '.join(f'{value:.2f} s' for value in spent)}")
            print("; ".join(said))
        counted = joint[0]["bytes"]
        print(f"bytes a process and step: {counted}")
        return {
            **{name: round(median(values), 3) for name, values in ratios.items()},
            "loss": difference(*([line["loss"]["gdro"] for line in each] for each in lines)),
            "grad_norm": difference(*([line["grad_norm"] for line in each] for each in lines)),
            "state_share": round(counted["state"] / counted["features"], 5),
            "held": round(parts[0]["held"], 3),
        }
    finally:
        for process in [*together, *alone, *apart, *sharded]:
            process.kill()


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--work"]:
        data, model, out, batch, shard, rank = sys.argv[2:]
        worker(data, model, Path(f"{out}-{rank}"), int(batch), bool(shard))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lite", help="an open_clip name, or lite")
    parser.add_argument(
        "--batch", type=int, default=80, help="of both processes together; 80 pictures are there"
    )
    parser.add_argument("--rounds", type=int, default=8)
    wanted = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{wanted.model}, batch {wanted.batch}, torch {torch.__version__}, {machine}, 2 processes")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(wanted.model, wanted.batch, wanted.rounds, Path(folder))))


if __name__ == "__main__":
    main()
