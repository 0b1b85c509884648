"""Small picture folders that tests write themselves."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 220, 50),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
}


def picture(colour: tuple[int, int, int], seed: int, side: int = 40) -> Image.Image:
    """A noisy picture of one colour."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 25, size=(side, side, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def image_folder(
    root: Path, counts: Mapping[str, int], classes: int = 6, suffix: str = ".png", seed: int = 0
) -> Path:
    """``root/PART/CLASS/N.png`` for each part ("train", "test", or "" for bare classes) and its number of images.

    No two pictures are the same.
    """
    for part, count in counts.items():
        first = seed + {"": 0, "train": 5}.get(part, 505)
        for index, (name, colour) in enumerate(list(COLOURS.items())[:classes]):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(colour, 1000 * index + number + first).save(folder / f"{number}{suffix}")
    return root


def domain_folder(root: Path, domains: int = 3, classes: int = 3, count: int = 6) -> Path:
    """``root/DOMAIN/CLASS/N.png``."""
    for domain in range(domains):
        image_folder(root / f"domain{domain}", {"": count}, classes, seed=50 * domain)
    return root


def tiled(side: int, tile: int) -> bytes:
    """The header of a grey TIFF of one tile, which may be larger than the picture."""
    tags = (
        (256, side),
        (257, side),
        (258, 8),
        (259, 8),
        (262, 1),
        (322, tile),
        (323, tile),
        (324, 0),
        (325, 1),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
