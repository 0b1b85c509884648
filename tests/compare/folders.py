"""Run directories with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

RESULTS: dict[str, Any] = {
    "schema": 1,
    "model": "lite",
    "image_size": 96,
    "data": "emoji",
    "scenario": "class-incremental",
    "templates": ["a photo of a {}."],
    "classes": ["a", "b", "c", "d"],
    "tasks": ["task 1", "task 2"],
    "test_counts": [20, 30],
    "smoke": False,
    "validation": None,
    "zero_shot": 0.1,
    "zero_shot_after_stage": [0.2, 0.1],
    "forgetting": 0.05,
    "state_bytes": 0,
    "optimizer_steps": 40,
    "samples_seen": 1280,
}


def run_folder(
    folder: Path,
    last: float,
    *,
    method: str = "gcl",
    budget: int = 200,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A finished run with this last accuracy; ``config`` is laid over its config.toml, ``changes`` over its results."""
    folder.mkdir(parents=True)
    results = RESULTS | {
        "method": method,
        "seed": seed,
        "memory_budget": budget,
        "memory_bytes": 0 if method in ("zero_shot", "joint", "ncm") else 1000 * budget,
        "last": last,
        "average": min(1.0, last + 0.1),
    }
    written: dict[str, Any] = {
        "data": "emoji",
        "model": "lite",
        "seed": seed,
        "out": str(folder),
        "method": {"name": method},
        "memory": {"budget": budget, "policy": "method"},
        "train": {"lr": 1e-4, "epochs": 5},
    }
    for key, value in (config or {}).items():
        section, _, name = key.rpartition(".")
        (written.setdefault(section, {}) if section else written)[name] = value
    (folder / "config.toml").write_text(tomli_w.dumps(written), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results | changes), encoding="utf-8")
    return folder


def answers(folder: Path, right: int, of: int) -> None:
    """A predictions.npz in which the first ``right`` of the images are told right."""
    told = np.arange(of) < right
    top = np.where(told, 1, 2)[:, None]
    np.savez(folder / "predictions.npz", id=np.arange(of), label=np.ones(of, dtype=np.int64), top=top)
