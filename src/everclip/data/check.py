"""Check that a data set is all there: counts against the official ones, every file looked for, a sample decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from everclip.data.formats.folders import absent
from everclip.data.formats.hub import offline
from everclip.data.images import Dataset, FileStore, ImageSet
from everclip.data.paths import spec_of
from everclip.data.sources import Official
from everclip.errors import UserError

SAMPLE = 200
SHOWN = 3
"""Number of lines of one kind to show; the rest is only counted."""


@dataclass(frozen=True)
class Report:
    """The findings; the counts are None where the data set could not be loaded.

    Args:
        domains: images of each part by domain, where there are two domains or more.
        decoded: images of the sample that could be decoded, of ``sampled``.
        problems: one line each; none where the data set is complete.
        home: address of the page that offers the data set, where there is one.
        captions: number of different texts, for data with captions in place of classes.
    """

    data: str
    train: int | None = None
    test: int | None = None
    classes: int | None = None
    domains: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sampled: int = 0
    decoded: int = 0
    problems: tuple[str, ...] = ()
    home: str = ""
    captions: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report for ``--json``."""
        found = {"complete": not self.problems, **asdict(self), "problems": list(self.problems)}
        if self.captions is None:
            del found["captions"]
        return found


def check(spec: str) -> Report:
    """Look through the data set that ``spec`` names; download nothing. Raises UserError for an unknown source."""
    from everclip import data
    from everclip.system import trust

    trust.typed(spec)
    spec = spec_of(spec)
    source, argument = data.source(spec, {})
    official = source.official
    home = official.home if official is not None else ""
    try:
        problems = source.missing(argument)
        with offline():
            found = None if problems else data.load(spec, pairs=True)
    except UserError as error:
        return Report(spec, problems=(str(error),), home=home)
    if found is None:
        return Report(spec, problems=tuple(problems), home=home)
    parts = {"train": found.train, "test": found.test}
    if official is not None:
        problems = _differences(found, parts, official)
    elif not len(found.test):
        problems = ["there are no test images"]
    if isinstance(store := found.train.store, FileStore):
        root = Path(store.root)
        problems += _shortened([f"{root / key} is missing: put it there" for key in absent(root, store.keys)])
    sampled, broken = _decode(found)
    several = len(found.domain_names) > 1
    domains = {
        name: {part: int((images.domains == index).sum()) for part, images in parts.items()}
        for index, name in enumerate(found.domain_names if several else ())
    }
    return Report(
        spec,
        len(found.train),
        len(found.test),
        len(found.class_names),
        domains,
        sampled,
        sampled - len(broken),
        tuple(problems + _shortened(broken)),
        home,
        None if found.train.captions is None else len(found.train.captions.texts),
    )


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - SHOWN
    return [*lines[:SHOWN], f"and {rest} more of the kind"] if rest > 0 else lines


def _differences(found: Dataset, parts: Mapping[str, ImageSet], official: Official) -> list[str]:
    """Return counts that are not the official ones."""
    wrong = []
    if len(found.class_names) != official.classes:
        wrong.append(f"{len(found.class_names)} classes of {official.classes}")
    for which, (part, images) in enumerate(parts.items()):
        expected = official.test if which else official.train
        if len(images) != expected:
            wrong.append(f"{len(images):,} {part} images of {expected:,}")
        uneven = []
        for label, count in enumerate(images.counts(len(found.class_names)).tolist()):
            if len(images) and count != official.per_class.get(part, count):
                name = found.class_names[label]
                uneven.append(f'class "{name}" has {count} {part} images of {official.per_class[part]}')
        wrong += _shortened(uneven)
        for domain, numbers in official.domains.items():
            here = found.domain_names.index(domain) if domain in found.domain_names else -1
            count = int((images.domains == here).sum())
            if count != numbers[which]:
                wrong.append(f'domain "{domain}" has {count:,} {part} images of {numbers[which]:,}')
    return wrong


def _decode(found: Dataset) -> tuple[int, list[str]]:
    """Return the size of a sample of images, and a line for each that cannot be decoded. Their ids, hashes, choose."""
    from everclip.data.pixels import Pixels

    ids = np.concatenate([found.train.ids, found.test.ids])
    rows = np.concatenate([found.train.rows, found.test.rows])[np.argsort(ids)[:SAMPLE]]
    store = found.train.store
    side = 16 if store.width is None else 0
    pixels = Pixels(store, lambda image: image.resize((16, 16)), side, cache_bytes=0)
    pixels.load(rows)
    place = f"{store.root}/" if isinstance(store, FileStore) else ""
    broken = pixels.skipped().items()
    return len(rows), [
        f"{place}{key} cannot be decoded ({why}): put the original there" for key, why in broken
    ]
