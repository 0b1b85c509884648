"""Read data sets from lists of images: name classes, hold images out, keep to a folder. All list sources share this."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everclip.data.formats.folders import ADDITION, beside, check_names, split_of
from everclip.data.images import Dataset, Store, build
from everclip.data.prompts import (
    PHOTO,
    are_numbers,
    clean,
    fill,
    read_class_names,
    read_lines,
    read_templates,
)
from everclip.errors import UserError

log = logging.getLogger("everclip")

MOST_IMAGES = 20_000_000
"""Rows of a list. A row costs some hundred bytes, so a longer list would not fit into memory."""
MOST_LABEL = 200
"""Characters of a class's name; a longer text is a caption."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of a list, as long as its store.

    Args:
        labels: each image's class as it is written, or its number; numbers are sorted as such.
        is_test: whether it is a test image; None: a fifth of each class in each domain is held out.
        domains: its domain; None: there are none.
        classes: their order where the list has one, whether they have images or not; the rest are sorted.
    """

    labels: Sequence[str]
    is_test: Sequence[bool] | None = None
    domains: Sequence[str] | None = None
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Origin:
    """The origin of a list.

    Args:
        name: the spec, for example ``csv:photos.csv``.
        where: the same for a message, for example the file's path.
        kind: of the scenario.
        domain_hint: how domains are written there, which ends a message.
        folder: of ``classnames.txt`` and ``templates.txt``, if there is one.
        links: other folders that these may link to.
        templates: the list's own prompts, which ``templates.txt`` overrides; none where no text tower reads any.
    """

    name: str
    where: str
    kind: str
    domain_hint: str
    folder: Path | None = None
    links: tuple[str, ...] = ()
    templates: tuple[str, ...] = (PHOTO,)


def dataset(origin: Origin, store: Store, rows: Rows) -> Dataset:
    """Return a Dataset of ``store``. Raises UserError for a class or a domain without images, or wrong names."""
    where, labels = origin.where, rows.labels
    if not labels:
        raise UserError(f"{where} lists no images: add some")
    present = set(labels)
    classes = [name for name in rows.classes if name in present]
    classes += _sorted(present.difference(classes))
    _check_labels(origin, classes)
    domains = [""] * len(labels) if rows.domains is None else rows.domains
    domain_names = _sorted(set(domains))
    if origin.kind == "domain-incremental" and len(domain_names) < 2:
        raise UserError(
            f"{where} has fewer than 2 domains: {origin.domain_hint}, or use scenario.kind=class-incremental"
        )
    is_test = held_out(store.keys, labels, domains) if rows.is_test is None else rows.is_test
    check_trained(where, "class", labels, is_test)
    if origin.kind == "domain-incremental":
        check_domains(where, domains, is_test)
    names, prompts = _names(origin, classes), _beside(origin, "templates.txt")
    label = {name: index for index, name in enumerate(classes)}
    domain = {name: index for index, name in enumerate(domain_names)}
    return build(
        origin.name,
        store,
        [label[name] for name in labels],
        [domain[name] for name in domains],
        is_test,
        check_names(names, where, classes, listed=origin.folder is not None),
        check_names([clean(name) for name in domain_names], where, domain_names, domains=True)
        if len(domain_names) > 1
        else domain_names,
        read_templates(prompts) if prompts else origin.templates,
        rows.is_test is None,
    )


def _sorted(names: set[str]) -> list[str]:
    """Return the names in alphabetical order; numbers by size."""
    if are_numbers(names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_labels(origin: Origin, classes: Sequence[str]) -> None:
    """Raise UserError where there are too few classes, or where a label is a whole text."""
    where, longest = origin.where, max(classes, key=len)
    if len(longest) > MOST_LABEL:
        raise UserError(
            f'a label of {where} has {len(longest)} characters ("{clean(longest)[:30]}..."): use the class\'s name'
        )
    if len(classes) < 2 and origin.kind != ADDITION:
        raise UserError(f'{where} has one class, "{clean(classes[0])}": a classifier needs two: add another')


def held_out(keys: Sequence[str], labels: Sequence[str], domains: Sequence[str]) -> list[bool]:
    """Return whether each image belongs to the held-out fifth of its class in its domain."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, *pair in zip(keys, labels, domains, strict=True):
        groups.setdefault((pair[0], pair[1]), []).append(key)
    is_test: dict[str, bool] = {}
    for group in groups.values():
        is_test |= split_of(group)
    return [is_test[key] for key in keys]


def check_trained(where: str, what: str, names: Sequence[str], is_test: Sequence[bool]) -> None:
    """Raise UserError for a class, group or task (``what`` the names are of) that is only tested."""
    trained = {name for name, test in zip(names, is_test, strict=True) if not test}
    if not trained:
        raise UserError(f"{where} lists only test images: add training images")
    if untrained := _sorted({*names} - trained):
        raise UserError(
            f'{what} "{untrained[0]}" of {where} has no training images: add some, or leave it out'
        )


def check_domains(where: str, domains: Sequence[str], is_test: Sequence[bool]) -> None:
    """Raise UserError for a domain in one part only: what is learned is tested, and the other way round."""
    pairs = {(domain, bool(test)) for domain, test in zip(domains, is_test, strict=True)}
    for domain, test in sorted(pairs):
        if (domain, not test) not in pairs:
            lacks = "training" if test else "test"
            raise UserError(f'domain "{domain}" of {where} has no {lacks} images: add some, or leave it out')


def _beside(origin: Origin, name: str) -> Path | None:
    return beside(origin.folder, name, origin.links) if origin.folder else None


def _names(origin: Origin, classes: Sequence[str]) -> tuple[str, ...]:
    """Return readable names of the classes: those in ``classnames.txt``, else as the list writes them.

    Where classes are numbers and the file has one name per line, it may name more classes than there are: a class's
    number is then its line, from 0, blank lines included.
    """
    path = _beside(origin, "classnames.txt")
    numbers = are_numbers(classes)
    if path:
        lines = read_lines(path, "class names", blank=True)
        if not numbers or any("\t" in line for line in lines):
            return read_class_names(path, classes)
        places = range(len(classes)) if len(lines) == len(classes) else [*map(int, classes)]
        if max(places) >= len(lines):
            raise UserError(
                f"{origin.where} has class {max(places)}, and {path} {len(lines)} lines: name all from 0"
            )
        for place, number in zip(places, classes, strict=True):
            if not lines[place]:
                raise UserError(f"line {place + 1} of {path} is blank: write the name of class {number}")
        return tuple(lines[place] for place in places)
    if numbers and origin.templates:
        log.warning(
            'the classes of %s are numbers, so that prompts read "%s": write names into classnames.txt, or give'
            " classnames=FILE",
            *(origin.where, fill(origin.templates[0], classes[-1])),
        )
    return tuple(clean(name) for name in classes)
