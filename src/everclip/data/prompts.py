"""Make prompts, the text tower's input, from class names and templates."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from everclip.errors import UserError
from everclip.system.reading import read_text, readable
from everclip.system.text import lines as lines_of
from everclip.system.text import printable

log = logging.getLogger("everclip")

PHOTO = "a photo of a {}."
"""The default template, and the fixed training caption of every text-based method (methods' papers, ours)."""


@dataclass(frozen=True)
class Prompts:
    """The texts of a run.

    Args:
        names: readable class names, index = label.
        templates: evaluation templates; a class embedding is their renormalised mean.
        captions: ``fixed``: every training caption uses ``a photo of a {}.``; ``random``: each image draws one of
            ``templates`` per step, as FLYP does (Goyal et al. 2023).
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    captions: str = "fixed"

    def caption(self, labels: Sequence[int], rng: np.random.Generator) -> list[str]:
        """Return one training caption per label."""
        if self.captions == "fixed":
            return [fill(PHOTO, self.names[label]) for label in labels]
        drawn = rng.integers(len(self.templates), size=len(labels))
        pairs = zip(drawn, labels, strict=True)
        return [fill(self.templates[which], self.names[label]) for which, label in pairs]


def fill(template: str, name: str) -> str:
    """Return the template with the name at ``{}``; other braces, in either, are left alone."""
    return template.replace("{}", name)


def clean(name: str) -> str:
    """Return a folder's name as a readable class name: underscores become spaces."""
    return " ".join(name.replace("_", " ").split())


def warn_of_alike(names: Sequence[str]) -> None:
    """Warn of the first two names that tokenizers, which ignore case, do not tell apart."""
    first: dict[str, str] = {}
    for name in names:
        before = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if before != name:
            log.warning(
                'text towers ignore case and read the classes "%s" and "%s" alike: rename one, or name it in'
                " classnames.txt (folder<TAB>name)",
                *(before, name),
            )
            return


def _short(line: str) -> str:
    """Return a line of a file, shortened for a message."""
    line = line.replace("\t", "<TAB>")
    return line if len(line) <= 40 else line[:37] + "..."


def read_lines(path: Path, what: str, blank: bool = False) -> list[str]:
    """Return the non-empty lines of a UTF-8 text file, stripped at the right. Raises UserError where there are none.

    Args:
        blank: keep the empty lines before the last of the others, for a reader that counts lines.
    """
    with readable(f"{what} file {str(path)[:200]}", "give a text file"):
        text = read_text(path)
    lines = [line for line in map(str.rstrip, lines_of(text.rstrip())) if line or blank]
    if not any(lines):
        raise UserError(f"{what} file {path} is empty: use one entry per line")
    return lines


def read_templates(path: Path) -> tuple[str, ...]:
    """Return templates, one per line, each with ``{}`` once for the class name. Raises UserError for another form."""
    return check_templates(tuple(read_lines(path, "templates")), path)


def check_templates(templates: tuple[str, ...], where: object) -> tuple[str, ...]:
    """Check templates of data and model folders. Raises UserError unless each is printable with one ``{}``."""
    for number, line in enumerate(templates, 1):
        if line.count("{}") != 1:
            raise UserError(f'template {number} of {where} is "{_short(line)}": use "{{}}" once, for a class')
        if printable(line) != line:
            raise UserError(
                f'template {number} of {where} cannot be printed ("{_short(printable(line))}"): change it'
            )
    return templates


def are_numbers(names: Iterable[str]) -> bool:
    """Return whether all names are whole numbers."""
    return all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names)


def _warn_of_numbers(path: Path, lines: Sequence[str], folders: Sequence[str]) -> None:
    """Warn of names by position for folders such as 1, 10, 2, which are sorted as texts."""
    if not are_numbers(folders):
        return
    for line, folder, by_size in zip(lines, folders, sorted(folders, key=int), strict=True):
        if folder != by_size:
            log.warning(
                '%s has one name per line, and the classes are sorted as texts: "%s" names the class %s and not %s; if'
                " that is wrong, use folder<TAB>name",
                *(path, _short(line), folder, by_size),
            )
            return


def read_class_names(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Return readable names for the classes in ``folders``. Raises UserError for a line that names none, or one twice.

    Each line is ``folder<TAB>name``; folders left out keep their own name. Or the file has exactly one name per line
    for each folder, in sorted order.
    """
    numbered = read_lines(path, "class names", blank=True)
    lines = [line for line in numbered if line]
    if not any("\t" in line for line in lines):
        if len(lines) != len(folders):
            raise UserError(
                f"{path} has {len(lines)} lines for {len(folders)} classes: use as many, or folder<TAB>name"
            )
        _warn_of_numbers(path, lines, folders)
        return tuple(lines)
    names = {folder: clean(folder) for folder in folders}
    line_of: dict[str, int] = {}
    for number, line in enumerate(numbered, 1):
        if not line:
            continue
        folder, tab, name = line.partition("\t")
        folder = folder if folder in names else clean(folder)  # it may be known only by its readable name
        if not tab or not name.strip() or folder not in names:
            raise UserError(f'line {number} of {path} is "{_short(line)}": use "folder<TAB>name" of a class')
        if line_of.setdefault(folder, number) != number:
            raise UserError(f'lines {line_of[folder]} and {number} of {path} both name "{folder}": keep one')
        names[folder] = name.strip()
    return tuple(names[folder] for folder in folders)
