"""Lists of pictures that tests write themselves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from everclip import data
from tests.pictures import COLOURS, image_folder

Row = tuple[str, ...]


def photos(root: Path, count: int = 6, classes: int = 4) -> list[Row]:
    """Pictures in ``root/photos``, and (path, class) of each."""
    image_folder(root / "photos", {"": count}, classes)
    names = list(COLOURS)[:classes]
    return [(f"photos/{name}/{number}.png", name) for name in names for number in range(count)]


def listed(
    path: Path, header: str, rows: Sequence[Row], separator: str = ",", encoding: str = "utf-8"
) -> Path:
    """A list as the csv module writes it: with \\r\\n, and quotes where they are needed."""
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def split(rows: Sequence[Row], tests: int = 2) -> list[Row]:
    """The first images of each class are test images."""
    return [(*row, "test" if int(Path(row[0]).stem) < tests else "train") for row in rows]


def load(path: Path, kind: str = "class-incremental") -> data.Dataset:
    return data.load(f"csv:{path}", kind)
