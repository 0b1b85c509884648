"""joined:A+B - several data sets as one, each a domain with its own classes; A and B are written as after data=.

    everclip train data=joined:caltech50+imagefolder:photos+cifar100 scenario.kind=cross-domain
    everclip train data=joined scenario.kind=cross-domain 'source.of=["caltech50", "C++/photos"]'

The domains are called as their folders or sources are, and learned in this order unless `scenario.order` lists them. A
class whose name an earlier data set has, too, is a different class, called "NAME (DATA SET)". Prompts are those of the
data sets where all have the same, else "a photo of a {}."; the domains within one data set are not kept.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
from pydantic import Field

from everclip.data.formats.folders import check_names, check_text
from everclip.data.gathered import Gathered
from everclip.data.images import Dataset, ImageSet, Store, sample_ids
from everclip.data.prompts import PHOTO
from everclip.data.sources import Source
from everclip.data.sources._base import SourceConfig
from everclip.errors import UserError


class JoinedStore(Gathered):
    """The images of several stores, one after another; keys begin with the name of their data set."""

    def __init__(self, names: Sequence[str], stores: Sequence[Store]) -> None:
        self.keys = [f"{name}/{key}" for name, store in zip(names, stores, strict=True) for key in store.keys]
        self._stores = stores
        self._ends = np.array([*accumulate(len(store.keys) for store in stores)])

    def _place(self, row: int) -> tuple[Store, int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._stores[part], row - (int(self._ends[part - 1]) if part else 0)

    def stamp(self, row: int) -> tuple[int, int] | None:
        store, place = self._place(row)
        return store.stamp(place)


class Joined(Source):
    """Several data sets as one."""

    class Config(SourceConfig):
        """Options of joined."""

        of: list[str] = Field(
            default=[], description="the data sets, instead of joined:A+B, if a path contains a +"
        )

    config: Config

    def load(self, argument: str | None, kind: str) -> Dataset:
        from everclip import data

        specs = self._specs(argument)
        found = [data.load(spec, typed=False) for spec in specs]
        for spec, one in zip(specs, found, strict=True):
            if one.train.store.width is not None:
                raise UserError(f"data joined takes pictures, and {spec} holds features: leave it out")
        names = _names(specs)
        check_text(names, "data joined")
        classes = _classes(names, found)
        store = JoinedStore(names, [one.train.store for one in found])
        templates = {one.templates for one in found}
        train = _moved(store, [one.train for one in found], found)
        test = _moved(store, [one.test for one in found], found)
        return Dataset(
            f"joined:{'+'.join(specs)}",
            tuple(check_names(classes, "data joined")),
            tuple(names),
            train,
            test,
            templates.pop() if len(templates) == 1 else (PHOTO,),
            all(one.held_out for one in found),  # else the test part that one came with would be learned
        )

    def missing(self, argument: str | None) -> list[str]:
        from everclip import data

        named = (data.source(spec, {}) for spec in self._specs(argument))
        return [line for source, inner in named for line in source.missing(inner)]

    def _specs(self, argument: str | None) -> list[str]:
        """Return the data sets' specs. Raises UserError where there are fewer than two, or both ways are used."""
        if argument and self.config.of:
            raise UserError("joined:A+B and source.of are both given: use one of them")
        specs = [spec.strip() for spec in argument.split("+")] if argument else self.config.of
        if len(specs) < 2 or not all(specs):
            raise UserError('data "joined" needs two data sets or more: use data=joined:A+B')
        nested = next((spec for spec in specs if spec.partition(":")[0] == "joined"), None)
        if nested is not None:
            raise UserError(f"data joined has {nested} in it: name its data sets one by one")
        return specs


def _names(specs: Sequence[str]) -> list[str]:
    """Return a name for each data set: its folder's or file's, else its source's; numbered where two have the same."""
    names = []
    for spec in specs:
        _, _, argument = spec.partition(":")
        names.append(os.path.basename((argument or spec).split("?")[0].split("#")[0].rstrip("/")) or spec)
    counts, used = Counter(names), Counter[str]()
    for place, name in enumerate(names):
        used[name] += 1
        if counts[name] > 1:
            names[place] = f"{name} {used[name]}"
    return names


def _classes(names: Sequence[str], found: Sequence[Dataset]) -> list[str]:
    """Return the class names of all data sets; a name that is taken already gets its data set's name added."""
    classes: list[str] = []
    known: set[str] = set()
    for name, one in zip(names, found, strict=True):
        own = [f"{label} ({name})" if label in known else label for label in one.class_names]
        classes += own
        known |= set(own)
    return classes


def _moved(store: Store, parts: Sequence[ImageSet], found: Sequence[Dataset]) -> ImageSet:
    """Return the tables as one, in a joined store: rows, labels and domains are numbered on."""
    rows = [0, *accumulate(len(one.train.store.keys) for one in found)]
    labels = [0, *accumulate(len(one.class_names) for one in found)]
    ids = sample_ids(store.keys)
    every = np.concatenate([part.rows + first for part, first in zip(parts, rows, strict=False)])
    return replace(
        parts[0],
        store=store,
        rows=every,
        labels=np.concatenate([part.labels + first for part, first in zip(parts, labels, strict=False)]),
        domains=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        ids=ids[every],
    )
