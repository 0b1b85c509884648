"""A run that tests of its use share, and pictures that it did not learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.pictures import COLOURS
from tests.running import run


def learned(out: Path, toy: str, photos: str, *tokens: str) -> Path:
    """A finished run of three tasks with two classes each, in ``out``."""
    run(out, f"data={photos}", f"model={toy}", *tokens)
    return out


def coloured(root: Path, classes: dict[str, tuple[int, int, int]], count: int = 4, seed: int = 0) -> str:
    """Spec of very noisy pictures of colours, in a folder of bare classes: some are hard to tell apart."""
    rng = np.random.default_rng(seed)
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = rng.normal(0, 90, size=(1, 1, 3)) + rng.normal(0, 30, size=(40, 40, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return f"imagefolder:{root}"


def held_out(root: Path, count: int = 4) -> str:
    """Pictures of the run's classes."""
    return coloured(root, COLOURS, count, seed=1)


def unlearned(root: Path) -> str:
    """Pictures of two classes that the run does not know."""
    return coloured(root, {"purple": (150, 30, 160), "orange": (240, 150, 30)}, seed=2)
