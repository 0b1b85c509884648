"""What faults are done with: a small model, pictures, undisturbed runs, and what is drawn by a seed and a number."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip import CLIP
from safetensors.torch import save_file

from everclip import plugins
from everclip.seeding import generator
from everclip.system.checkpoint import Store, verify
from tests.faults.forks import Forks
from tests.faults.server import PARTS
from tests.pictures import image_folder
from tests.running import logged, timeless

Row = dict[str, Any]

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
}
"""Under 1 MB, most of it the embeddings of the tokens."""

QUICK = {
    "cassle": ["method.probe_epochs=1", "method.hidden=16"],
    "cclis": ["method.probe_epochs=1"],
    "co2l": ["method.probe_epochs=1"],
    "rail": ["method.width=40"],
    "ranpac": ["method.width=40"],
    "vis": ["method.width=40"],
    "zscl": ["method.emoji_count=9", "method.ensemble_every=2"],
}
"""Options that make a method's run short or small."""

FACTORS: dict[str, Sequence[str]] = {
    "method": plugins.names("methods"),
    "train.precision": ("fp32", "bf16"),
    "loader.workers": ("0", "2"),
    "loader.cache_mb": ("0", "64"),
    "checkpoint.every": ("task", "steps:1", "steps:3"),
    "moment": (*PARTS, "clock"),
    "times": ("1", "1", "2"),
}
"""What a run is drawn from. ``times``: killed so often in a row; ``clock``: killed after a time, whatever it does."""
DECISIVE = ("method", "train.precision")
"""Factors that decide what a run computes: whatever the others are, it is held to one and the same reference."""
LEAST = 10
"""Items that each value of a factor has."""


def combination(seed: int, index: int, count: int) -> dict[str, str]:
    """The factors of one item: in ``count`` items each value of each factor comes equally often."""
    drawn: dict[str, str] = {}
    for name, values in FACTORS.items():
        order = generator(seed, name).permutation(np.resize(np.arange(len(values)), count))
        drawn[name] = values[int(order[index])]
    return drawn


class Reference(NamedTuple):
    """An undisturbed run.

    Args:
        print: of all that it computed.
        parts: of its events, as the server writes them.
        seconds: that it took.
    """

    print: str
    parts: bytes
    seconds: float


@dataclass
class Bench:
    """What faults are done with. Use ``Bench.at`` to set one up in a folder.

    Args:
        references: undisturbed runs by their settings, made when they are first asked for.
        kept: what else goals keep from item to item.
    """

    folder: Path
    forks: Forks
    seed: int = 0
    references: dict[tuple[str, ...], Reference] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, forks: Forks, seed: int = 0) -> Bench:
        """A bench whose model and pictures are in ``folder``."""
        if not (folder / "model").exists():
            small_model(folder / "model")
            image_folder(folder / "photos", {"train": 4, "test": 2})
        return cls(folder, forks, seed)

    def rng(self, goal: str, index: int) -> np.random.Generator:
        """The random numbers of one item."""
        return generator(self.seed, goal, index)

    def tokens(self, drawn: dict[str, str]) -> list[str]:
        """The settings of a small run."""
        settings = [f"{key}={value}" for key, value in drawn.items() if "." in key or key == "method"]
        fixed = [f"data=imagefolder:{self.folder / 'photos'}", f"model=local-dir:{self.folder / 'model'}"]
        fixed += [
            "scenario.tasks=2",
            "train.epochs=2",
            "train.batch_size=8",
            "memory.budget=12",
            "device=cpu",
        ]
        return [*fixed, *settings, *QUICK.get(drawn["method"], [])]

    def reference(self, drawn: dict[str, str]) -> Reference:
        """The undisturbed run of these factors. Raises RuntimeError where it fails, or computes what it may not."""
        every = {"checkpoint.every": drawn.get("checkpoint.every", "task")}  # makes other events
        tokens = self.tokens({key: drawn[key] for key in DECISIVE} | every)
        key = (*(drawn[key] for key in DECISIVE), *every.values())
        if key not in self.references:
            out, trace = self.fresh("reference"), self.folder / "trace"
            first = self.forks.run(["train", *tokens, f"out={out}"], trace=trace)
            if first.status:
                raise RuntimeError(f"an undisturbed run fails: {first.last}")
            seconds = json.loads((out / "results.json").read_text())["seconds"]
            found = self.references[key] = Reference(fingerprint(out), trace.read_bytes(), seconds)
            if any(
                other.print != found.print for known, other in self.references.items() if known[:2] == key[:2]
            ):
                raise RuntimeError(f"{' '.join(tokens)} computes something else when it is saved more often")
        return self.references[key]

    def fresh(self, name: str) -> Path:
        """A path with nothing there."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def moment(self, parts: bytes, part: str, rng: np.random.Generator) -> dict[str, Any]:
        """A random event of a part, or of all where it has none."""
        count = parts.count(PARTS.index(part)) if part in PARTS else 0
        return {"at": int(rng.integers(count or len(parts))) + 1, "part": part if count else None}


@dataclass(frozen=True)
class Goal:
    """A goal: how many items it has in all, and what does one."""

    title: str
    count: int
    item: Callable[[Bench, int], Row]


def small_model(folder: Path) -> None:
    """Save a CLIP model of random weights as a ``local-dir``."""
    folder.mkdir(parents=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")


def fingerprint(out: Path) -> str:
    """A hash of all that a finished run computed: weights, the method's state, memory, results, log, predictions."""
    newest = Store(out / "checkpoints", 1).places()[-1]
    folder = out / "checkpoints" / newest.name
    verify(folder)
    state = torch.load(folder / "state.pt", weights_only=True)
    digest = hashlib.sha256()

    def take(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
            )
        elif isinstance(value, dict):
            for key in sorted(value):
                digest.update(f"{key}:".encode())
                take(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                take(part)
        else:
            digest.update(repr(value).encode())

    results = timeless(json.loads((out / "results.json").read_text()))
    take([state["method"], state["memory"], state["skipped"], results, logged(out)])
    for name in ("matrix.csv", "per_class.csv", "predictions.npz"):
        digest.update((out / name).read_bytes())
    digest.update((folder / "open_clip_model.safetensors").read_bytes())
    return f"{newest.name} {digest.hexdigest()}"
