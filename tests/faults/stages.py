"""Many stages in one run: memory and open files stay what they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.forks import ROOT

Row = dict[str, Any]

GROWTH = 200_000
"""Most bytes that the resident memory may grow with each stage, from a tenth of them on; results are in it."""


def stages(folder: Path, model: Path, count: int, every: float = 0.5) -> Row:
    """Train ``count`` tasks of one class each, and look at the process from outside.

    Args:
        every: seconds between two looks.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("train", "test"):
        for number in range(count):
            path = folder / "photos" / part / f"class {number:04d}"
            path.mkdir(parents=True)
            colour = tuple(int(x) for x in np.random.default_rng(number).integers(0, 256, 3))
            Image.new("RGB", (8, 8), colour).save(path / "0.png")
    log = folder / "run" / "metrics.jsonl"
    settings = [
        f"data=imagefolder:{folder / 'photos'}",
        f"model=local-dir:{model}",
        f"scenario.tasks={count}",
    ]
    settings += ["train.steps=1", "train.batch_size=4", "memory.budget=8", "method=gdro", "device=cpu"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "everclip", "train", *settings, f"out={folder / 'run'}"],
            cwd=ROOT,
            stdout=said,
            stderr=said,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        looks: list[tuple[int, int, int]] = []
        while process.poll() is None:
            done = log.read_bytes().count(b'{"event": "stage"') if log.exists() else 0
            if (look := _look(process.pid)) is not None and done:
                looks.append((done, *look))
            time.sleep(every)
    return judged(process.returncode, count, looks) | {"said": (folder / "said").read_text()[-300:]}


def _look(pid: int) -> tuple[int, int] | None:
    """Resident bytes and open files of a process; None where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None


def judged(code: int, count: int, looks: Sequence[tuple[int, int, int]]) -> Row:
    """What a run's exit code and looks at it say: stages done, resident bytes and open files of each."""
    late = [look for look in looks if count / 10 < look[0] < count]
    if code or len(late) < 6:
        return {"ok": False, "why": f"exit {code}, {len(late)} looks"}
    done, sizes, files = zip(*late, strict=True)
    slope = float(np.polyfit(done, sizes, 1)[0])
    third = len(late) // 3
    # a checkpoint has a file or two open while it is written
    more = min(files[-third:]) - min(files[:third])
    row = {
        "stages": count,
        "at_end": max(look[1] for look in looks),  # while the results are written and the page is drawn
        "resident_bytes": {str(done): size for done, size, _ in late[:: max(1, len(late) // 10)]},
        "growth": round(max(sizes) / sizes[0] - 1, 4),
        "bytes_per_stage": round(slope),
        "open_files": [min(files), max(files)],
    }
    return row | {"ok": slope < GROWTH and more < 2, "why": ""}
