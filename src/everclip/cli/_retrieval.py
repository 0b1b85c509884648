"""Measure and show how a model finds captions by images and images by captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everclip.cli._output import print_lines, print_table
from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.errors import RunError
from everclip.inference.assess import decoded
from everclip.metrics.retrieval import AT, WAYS
from everclip.models.clip import Clip
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
    rows = []
    for way, words in zip(WAYS, ("captions by an image", "images by a caption"), strict=True):
        row = result[way]
        recalls = [f"{row[f'recall_at_{k}']:.1%}" for k in AT]
        rows.append((words, *recalls, f"{row['median_rank']:g}"))
    head = ("search", *(f"recall@{k}" for k in AT), "median rank")
    print_table(f"{result['model']} on {result['data']}", head, rows)
    print_lines(
        [
            f"recall@1 {result['recall']:.1%} in the mean of both,"
            f" {result['images']} images and {result['captions']} different captions",
            *more,
            *(f"skipped {path}: {reason}" for path, reason in result["skipped_images"].items()),
        ]
    )
