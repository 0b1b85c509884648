"""Runs to draw, which the tests only read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.report.synthetic import write_run

matplotlib.use("agg")
SMALL: dict[str, Any] = {"tasks": 3, "per_task": 4, "steps": 30, "options": "", "answers": True}
FROZEN = [0.7, 0.65, 0.6]


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two methods at two memory sizes, a method without memory, joint training and zero-shot."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(3):
        for method, gain in (("gcl", 0.02), ("gdro", 0.1)):
            for memory in (0, 200):
                path = folder / f"{method}_{memory}_{seed}"
                results = write_run(path, method=method, gain=gain, memory=memory, seed=seed, **SMALL)
                results |= {"frozen_features_after_stage": FROZEN, "frozen_features": FROZEN[-1]}
                (path / "results.json").write_text(json.dumps(results))
    for method in ("ncm", "joint", "zero_shot"):
        write_run(folder / method, method=method, memory=0, gain=0.2, **SMALL)
    return folder


@pytest.fixture(scope="session")
def one(many: Path) -> Path:
    """One finished run."""
    return many / "gdro_200_0"
