"""Measure and show how a model finds captions by images and images by captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.errors import RunError
from everclip.inference.assess import decoded
from everclip.metrics.retrieval import AT, WAYS
from everclip.models.clip import Clip
from everclip.system.text import printable
from everclip.training.retrieve import search, warn_of_long


def measured(clip: Clip, images: ImageSet) -> dict[str, Any]:
    """Return recalls and median ranks of images among their own captions, ready for JSON.

    Raises:
        RunError: none of the images can be read.
    """
    warn_of_long(clip, images)
    pixels = decoded(images, clip)
    found = search(clip, images, Loader(pixels, 128))
    if found is None:
        raise RunError(f"not one of {len(images)} images can be read")
    return found.summary() | {"recall": found.ranks.recall, "skipped_images": pixels.skipped()}


def show(result: dict[str, Any], more: Sequence[str]) -> None:
    """Print a table of both directions, and lines below it."""
    table = Table(title=escape(f"{result['model']} on {result['data']}"), title_justify="left")
    for column in ("search", *(f"recall@{k}" for k in AT), "median rank"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for way, words in zip(WAYS, ("captions by an image", "images by a caption"), strict=True):
        row = result[way]
        recalls = [f"{row[f'recall_at_{k}']:.1%}" for k in AT]
        table.add_row(words, *recalls, f"{row['median_rank']:g}")
    console = Console(soft_wrap=True)
    console.print(table)
    lines = [
        f"recall@1 {result['recall']:.1%} in the mean of both, {result['images']} images and {result['captions']}"
        " different captions",
        *more,
        *(f"skipped {path}: {reason}" for path, reason in result["skipped_images"].items()),
    ]
    for line in lines:
        console.print(printable(line), markup=False, highlight=False)
