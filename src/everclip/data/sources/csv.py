"""csv:FILE - your images in a list: a header "path,label", then one line per image; "split" and "domain" are optional.

    path,label,split,domain
    photos/1.jpg,cat,train,sketch

Paths are relative to the list's folder and stay inside it, links included. Columns come in any order, separated by
commas, tabs or semicolons; `image`, `file`, `filepath` stand for `path`, `class` for `label`; others are ignored.
`split` is train, test or val: val stands for a missing test part, and is left out beside one. Without a test part, a
fifth of each class in each domain is held out, by a hash of the file's name. The domains are learned in alphabetical
order unless `scenario.order` lists them. With `scenario.kind=time` or `data-incremental` a column `time`, `date` or
`timestamp` has a number or a date such as 2024-05-31T12:00 for each image. `classnames.txt` and `templates.txt` beside
the list override names and prompt.

A list without labels may have captions, for image-text pairs:

    path,caption,split,task
    photos/1.jpg,a cat asleep on a chair,train,2023

An image has a line for each caption, or one line with a JSON list of them. `task` (or `domain`), `time` and `group` are
optional: what makes tasks (everclip scenarios data-incremental), and what gdro weighs.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from everclip.data.captions import MOST_OF_AN_IMAGE
from everclip.data.formats import pairs
from everclip.data.formats.folders import Fence
from everclip.data.formats.tables import MOST_IMAGES, Origin, Rows, dataset
from everclip.data.formats.times import TIME, numbered
from everclip.data.images import MOST_BYTES, Dataset, FileStore
from everclip.data.sources import TASKS, Source
from everclip.errors import UserError, shown, why
from everclip.system.reading import Unreadable, open_regular

log = logging.getLogger("everclip")

COLUMNS = {
    "path": ("path", "image", "file", "filepath"),
    "label": ("label", "class"),
    "split": ("split",),
    "domain": ("domain",),
}
"""A column -> what it may be called."""
CAPTIONED = {
    "path": COLUMNS["path"],
    "caption": ("caption", "captions"),
    "split": ("split",),
    "task": ("task", "domain"),
    "time": TIME,
    "group": ("group",),
}
"""The same for a list with captions, which has no label."""
HEADER = "use a header such as path,label or path,label,split,domain"
RELATIVE = 'use paths relative to the list, with "/", that stay in its folder'
PARTS = ("train", "test", "val")
MOST_LINE = 1 << 20
"""Bytes of a line."""


class _Entry(NamedTuple):
    """An image. With captions ``label`` is its group and ``domain`` its task."""

    path: str
    label: str
    split: str
    domain: str
    time: str = ""
    captions: tuple[str, ...] = ()


class Csv(Source):
    """Pictures in a list."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        if not argument:
            raise UserError('data "csv" needs a file: use data=csv:FILE, with a header such as path,label')
        file = Path(os.path.expanduser(argument))
        if os.path.isdir(file):
            raise UserError(f"list {file} is a folder: give a csv file, or use data=imagefolder:{file}")
        more = {TASKS: {"domain": CAPTIONED["task"], "time": TIME}, "time": {"time": TIME}}
        columns, entries = _read(file, COLUMNS | more.get(kind, {}))
        parts = {entry.split for entry in entries}
        if {"test", "val"} <= parts:
            kept = [entry for entry in entries if entry.split != "val"]
            log.warning("%s has test images: its %d val images are left out", file, len(entries) - len(kept))
            entries = kept
        is_test = None if parts == {"train"} else [entry.split != "train" for entry in entries]
        store = FileStore(file.parent, [entry.path for entry in entries])
        times = numbered((entry.time for entry in entries), str(file)) if "time" in columns else None
        if "caption" in columns:
            found = pairs.Pairs(
                [entry.captions for entry in entries],
                is_test,
                [entry.label for entry in entries] if "group" in columns else None,
                [entry.domain for entry in entries] if "task" in columns else None,
                times,
            )
            return pairs.dataset(f"csv:{argument}", str(file), store, found)
        rows = Rows(
            [entry.label for entry in entries],
            is_test,
            [entry.domain for entry in entries] if "domain" in columns else None,
        )
        hint = 'write each image\'s domain into a column "domain"'
        origin = Origin(f"csv:{argument}", str(file), kind, hint, file.parent)
        if kind == "time" and times is None:
            raise UserError(f'the header of {file} has no column "time": add one')
        return replace(dataset(origin, store, rows), times=times)


def _read(file: Path, labelled: Mapping[str, Sequence[str]]) -> tuple[dict[str, int], list[_Entry]]:
    """Return the columns that the header names, with their positions, and a checked entry per image."""
    entries: list[_Entry] = []
    first: dict[str, tuple[int, int]] = {}  # line and place of each image
    fence = Fence(file.parent)
    records = _records(file)
    _, header = next(records, (1, []))
    columns = _columns(file, header, labelled)
    for line, cells in records:
        where = f"line {line} of {file}"
        if len(cells) != len(header):
            raise UserError(
                f"{where} has {len(cells)} columns, not {len(header)}: quote cells with separators"
            )
        entry = _entry(where, columns, cells)
        before, at = first.setdefault(entry.path, (line, len(entries)))
        if before != line:
            if not entry.captions:
                raise UserError(f"{where} lists {shown(entry.path)} as line {before} does: keep one")
            entries[at] = _together(where, before, entries[at], entry)
            continue
        _check_image(where, file.parent, entry.path, fence)
        entries.append(entry)
        if len(entries) > MOST_IMAGES:
            raise UserError(f"{file} lists more than {MOST_IMAGES:,} images: split it into several lists")
    return columns, entries


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line's number, cells) of each record not blank, the header first. Raises UserError if malformed."""
    lines = _lines(file)
    header = next(lines, "")
    separator = max(",\t;", key=header.count)
    reader = csv.reader(chain([header], lines), delimiter=separator, strict=True)
    line = 1
    while True:
        limit = csv.field_size_limit(MOST_LINE)  # of the whole process; a list of captions may be longer
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"line {line} of {file} is malformed ({error}): quote the cell, and double the quotes inside"
            ) from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]
        line = reader.line_num + 1


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, with or without a byte order mark, and with their line breaks."""
    try:
        with open_regular(file) as opened:
            for number in count(1):
                line = opened.readline(MOST_LINE + 1)
                if not line:
                    return
                if len(line) > MOST_LINE:
                    raise UserError(f"line {number} of {file} is longer than {MOST_LINE:,} bytes: shorten it")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"line {number} of {file} is not UTF-8 text: save it as UTF-8") from error
    except (OSError, Unreadable) as error:
        raise UserError(f"list {file} cannot be read ({why(error)}): give a csv file") from error


def _together(where: str, line: int, first: _Entry, again: _Entry) -> _Entry:
    """Return an image with the captions of two lines. Raises UserError where these differ in anything else."""
    if first._replace(captions=()) != again._replace(captions=()):
        raise UserError(
            f"{where} and line {line} give {shown(first.path)} another split, task, time or group: use one"
        )
    found = tuple(dict.fromkeys(first.captions + again.captions))
    if len(found) > MOST_OF_AN_IMAGE:
        raise UserError(f"{where}: {shown(first.path)} has over {MOST_OF_AN_IMAGE:,} captions: use fewer")
    return first._replace(captions=found)


def _columns(file: Path, header: Sequence[str], labelled: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Column -> its position. Raises UserError where a column is missing or there twice.

    Args:
        labelled: what the columns of a list with labels may be called; one without has captions.
    """
    names = [name.casefold() for name in header]
    found: dict[str, int] = {}
    captioned = not {*names} & {*COLUMNS["label"]} and bool({*names} & {*CAPTIONED["caption"]})
    for column, spellings in (CAPTIONED if captioned else labelled).items():
        places = [place for place, name in enumerate(names) if name in spellings]
        if len(places) > 1:
            shown_names = " and ".join(shown(header[place]) for place in places[:2])
            raise UserError(f"the header of {file} has {shown_names} for the column {column}: keep one")
        if places:
            found[column] = places[0]
    for column in ("path", "caption" if captioned else "label"):
        if column not in found:
            has = shown(", ".join(header)) if header else "nothing"
            raise UserError(f'line 1 of {file} has no column "{column}" but {has}: {HEADER}')
    return found


def _entry(where: str, columns: Mapping[str, int], cells: Sequence[str]) -> _Entry:
    """Return the cells that count. Raises UserError for an empty one, and for an unknown part or an unsafe path."""
    value = {column: cells[place] for column, place in columns.items()}
    for column, cell in value.items():
        if not cell:
            raise UserError(f"{where} has an empty {column}: write one, or leave the line out")
    part = value.get("split", "train").casefold()
    if part not in PARTS:
        raise UserError(f"{where} has the split {shown(value['split'])}: use train, test or val")
    path = value["path"]
    if re.match(r"([A-Za-z]:)?[/\\]", path) or ".." in re.split(r"[/\\]", path):
        raise UserError(f"{where} has the path {shown(path)}: {RELATIVE}")
    path = PurePosixPath(path).as_posix()
    if "caption" not in value:
        return _Entry(path, value["label"], part, value.get("domain", ""), value.get("time", ""))
    said = tuple(pairs.cell(where, value["caption"]))
    return _Entry(path, value.get("group", ""), part, value.get("task", ""), value.get("time", ""), said)


def _check_image(where: str, folder: Path, key: str, fence: Fence) -> None:
    """Raise UserError where there is no such file in the list's folder."""
    path = f"{folder}/{key}"
    try:
        status = os.stat(path)
        inside = fence.holds(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {shown(key)} cannot be read ({why(error)}): {RELATIVE}") from error
    if not inside or not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{where}: {shown(key)} is not a file in the list's folder: put the image itself there"
        )
    if status.st_size > MOST_BYTES:
        raise UserError(f"{where}: {shown(key)} has {status.st_size:,} bytes: use at most {MOST_BYTES:,}")
