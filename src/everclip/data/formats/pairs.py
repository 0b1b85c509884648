"""Read data sets of images with captions: take captions from cells, name groups and tasks, hold images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everclip.data.captions import PAIR, Captions, checked
from everclip.data.formats.folders import check_names
from everclip.data.formats.tables import check_trained, held_out
from everclip.data.images import Dataset, Store, build
from everclip.data.prompts import clean
from everclip.errors import UserError
from everclip.system.reading import parse_json

ITSELF = ("{}",)
"""The template of captions, which are used as they are."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Columns of a list of images with captions, as long as its store.

    Args:
        captions: those of each image, as ``captions.checked`` gives them.
        is_test: whether it is a test image; None: a fifth of each group in each task is held out.
        groups, tasks: the names that each has; None: there are none.
        times: float64 ``[n]``, when it was taken, as ``times.numbered`` gives it; None: that is not known.
    """

    captions: Sequence[Sequence[str]]
    is_test: Sequence[bool] | None = None
    groups: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    times: NDArray[np.float64] | None = None


def dataset(name: str, where: str, store: Store, rows: Pairs) -> Dataset:
    """Return a Dataset of the images of ``store``: labels are groups, domains are tasks. Raises UserError for a group
    or a task without training images, and for names that cannot be printed or collide.

    Args:
        name: the spec, for example ``csv:pairs.csv``.
        where: the same for a message.
    """
    count = len(rows.captions)
    if not count:
        raise UserError(f"{where} lists no images: add some")
    groups = [PAIR] * count if rows.groups is None else rows.groups
    tasks = [""] * count if rows.tasks is None else rows.tasks
    is_test = held_out(store.keys, groups, tasks) if rows.is_test is None else rows.is_test
    for what, column in (("group", groups), ("task", tasks)):
        check_trained(where, what, column, is_test)
    names, kinds = (sorted({*column}, key=_order) for column in (tasks, groups))
    place, number = ({one: index for index, one in enumerate(sorted_)} for sorted_ in (names, kinds))
    return build(
        name,
        store,
        [number[one] for one in groups],
        [place[one] for one in tasks],
        is_test,
        check_names([clean(one) for one in kinds], where, kinds),
        check_names([clean(one) for one in names], where, names, domains=True) if len(names) > 1 else names,
        ITSELF,
        rows.is_test is None,
        Captions(rows.captions),
        rows.times,
    )


def _order(name: str) -> tuple[int, int, str]:
    """Return a key that sorts numbers by size, before names by the alphabet."""
    number = name.isascii() and name.isdecimal() and len(name) < 10
    return (0, int(name), "") if number else (1, 0, name)


def cell(where: str, text: str) -> list[str]:
    """Return a cell's captions: a JSON list of texts, else the text itself. Raises UserError as ``checked`` does."""
    if text.startswith("[") and text.endswith("]"):
        try:
            found = parse_json(text)
        except ValueError:
            found = None
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return checked(where, found)
    return checked(where, [text])


def of_json(where: str, found: object) -> list[str]:
    """Return an object's "caption" (or "captions"), a text or a list. Raises UserError for anything else."""
    value = found.get("caption", found.get("captions")) if isinstance(found, dict) else None
    if not isinstance(value, str | list):
        raise UserError(f'{where} has no "caption": use {{"caption": "a text"}}, or a list of texts')
    return checked(where, value if isinstance(value, list) else [value])
