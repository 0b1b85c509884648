"""A run of the size of CIFAR-100 on a processor, and where its time goes.

    python -m benchmarks.cifar_shaped --out runs/cifar_shaped [--threads 2] [--part 50]

ViT-B-32 with random weights at 224 px, ``tune=top:2`` above a kept trunk, bf16, GDRO, ten tasks of ten classes, one
epoch, a memory of 2,000. The 50,000 training and 10,000 test pictures are drawn from a seed and written as CIFAR-100's
own files (its checksums are replaced in this process), so they go through the package's own reader, resizing and
checkpoints; accuracies mean little. ``--part 50`` takes one in fifty pictures of each class, and a memory smaller by as
much, but at least one exemplar per class. A stopped run continues where it was saved: give the same command again.

Times are processor seconds of the process, each counted where it is spent: decoding while activations are computed
counts as decoding. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.data import cifar

from benchmarks.jobs import machine
from benchmarks.step import weights
from everclip.config import load_config
from everclip.data.memory import Memory
from everclip.data.pixels import Pixels
from everclip.data.sources import cifar100
from everclip.models.clip import Clip
from everclip.models.trunk import Trunk
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training import learn, loop
from everclip.training.checkpointer import Checkpointer

CLASSES, TRAIN, TEST, MEMORY, BATCH = 100, 500, 100, 2000, 128
WATCHED: dict[str, tuple[tuple[Any, str], ...]] = {
    "decoding": ((Pixels, "load"),),
    "trunk": ((Trunk, "forward"),),
    "training": ((learn, "step"),),
    "testing": ((loop, "evaluate"),),
    "class embeddings": ((Clip, "class_embeddings"),),
    "checkpoints": ((Checkpointer, "finish"), (Checkpointer, "enter"), (Checkpointer, "scored")),
    "choosing exemplars": ((Memory, "update"),),
    "building the model": ((loop, "load_model"), (loop, "restore")),
}


class Shares(Progress):
    """Processor seconds by part, kept in a file after each task, so that a continued run has them all."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        self.seconds: defaultdict[str, float] = defaultdict(float, known)
        self._parts, self._since, self._began = ["other"], time.process_time(), time.monotonic()
        for part, places in WATCHED.items():
            for owner, name in places:
                setattr(owner, name, self._watched(part, getattr(owner, name)))

    def _watched(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **named: Any) -> Any:
            self._count()
            self._parts.append(part)
            try:
                return call(*args, **named)
            finally:
                self._count()
                self._parts.pop()

        return timed

    def _count(self) -> None:
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def say(self, line: str) -> None:
        super().say(line)
        if " on all classes seen so far" in line:
            self.keep()

    def keep(self) -> None:
        """Write what was counted so far."""
        self._count()
        now = time.monotonic()
        self.seconds["wall"] += now - self._began
        self._began = now
        self._file.write_text(json.dumps(self.seconds))


def pictures(folder: Path, part: int) -> Path:
    """Files of CIFAR-100's layout, with a pattern of 8 x 8 fields for each class under noise."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (CLASSES, 3, 8, 8))
    values: dict[str, dict[bytes, Any]] = {
        "meta": {b"fine_label_names": cifar.names(CLASSES), b"coarse_label_names": [b"things"]}
    }
    for name, count in (("train", TRAIN // part), ("test", TEST // part)):
        labels = random.permutation(np.repeat(np.arange(CLASSES), count))
        plain = patterns[labels].repeat(4, axis=2).repeat(4, axis=3)
        noisy = plain + random.normal(0, 40, plain.shape)
        values[name] = {
            b"fine_labels": labels.tolist(),
            b"data": noisy.clip(0, 255).astype(np.uint8).reshape(len(labels), -1),
        }
    files = {name: cifar.python2_pickle(content) for name, content in values.items()}
    cifar100.MD5.update(
        {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    )
    return cifar.write(folder, files)


def run(out: Path, part: int) -> dict[str, Any]:
    """Train, from where the run was saved, and return what it took."""
    out.mkdir(parents=True, exist_ok=True)
    data = pictures(out / "data", part)
    spec = f"local-dir:{out / 'model'}" if (out / "model").exists() else weights("ViT-B-32", out / "model")
    words = [
        f"data=cifar100:{data}",
        f"model={spec}",
        "method=gdro",
        "tune=top:2",
        "train.augment=none",
        "train.precision=bf16",
        "train.epochs=1",
        f"train.batch_size={BATCH}",
        f"memory.budget={max(CLASSES, MEMORY // part)}",
        "device=cpu",
        f"out={out / 'run'}",
    ]
    shares = Shares(out / "seconds.json")
    config = resolve(load_config(words))
    with Run.open(config) as opened:
        results = loop.train(opened, shares)
    shares.keep()
    seconds = {name: round(value, 1) for name, value in shares.seconds.items() if name != "wall"}
    return {
        "cpu_minutes": round(sum(seconds.values()) / 60, 1),
        "wall_minutes": round(shares.seconds["wall"] / 60, 1),
        "seconds": dict(sorted(seconds.items(), key=lambda pair: -pair[1])),
        "last": results["last"],
        "average": results["average"],
        "cache_gb": round(results["cache_bytes"] / 1e9, 2),
        "peak_gb": round(results["peak_memory_bytes"] / 1e9, 2),
        "steps": results["optimizer_steps"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the data, the model and the run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", type=int, default=1, help="one in so many pictures: 1, 2, 5, 10, 20, 50")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    found = run(wanted.out, wanted.part)
    about = {"part": wanted.part, "threads": wanted.threads, "torch": torch.__version__, "machine": machine()}
    print(json.dumps(found | about))


if __name__ == "__main__":
    main()
