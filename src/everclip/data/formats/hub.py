"""Open data sets with the package `datasets`: from a folder, or from the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip.data.formats.folders import Fence
from everclip.errors import UserError, shown
from everclip.system.reading import read_json, read_text, strange

if TYPE_CHECKING:
    import datasets

_HINT = "give a folder that save_to_disk wrote, or one of .parquet files"
_MOST_REASON = 240
_ELSEWHERE = re.compile(r"[/\\~]|[A-Za-z]:|.*:[:/]|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)
"""Matches an absolute path, a URL or a chain of them, and a path with ".."."""
_OFFLINE = ContextVar("offline", default=False)


def open_splits(name: str, config: str | None) -> Mapping[str, datasets.Dataset]:
    """Return the rows of each split, none of them decoded. Raises UserError where it is missing, damaged, of another
    format, or cannot be reached.

    Args:
        name: a folder, or a data set's name on the hub.
        config: which of its configurations; None: the only one.
    """
    import datasets

    root = Path(name)
    if not root.is_dir() and (root.exists() or name.startswith((".", "/")) or name.count("/") > 1):
        raise UserError(f"data folder {root} {'is a file' if root.exists() else 'does not exist'}: {_HINT}")
    wrong = strange(root, deep=True) if root.is_dir() else ""
    if wrong:
        raise UserError(f"data folder {root} cannot be used: {wrong}; {_HINT}")
    try:
        with _quiet(), _switched():
            if any((root / file).is_file() for file in ("dataset_dict.json", "state.json")):
                _check_saved(root)
                found: Any = datasets.load_from_disk(name)
            else:
                found = _built(name, config)
    except UserError:
        raise
    except Exception as error:  # the package raises anything, from KeyError to its own
        reason = " ".join(str(error).split())[:_MOST_REASON].rstrip(".") or type(error).__name__
        raise UserError(
            f'data "hf:{name}" cannot be loaded ({reason}): check folder or name, network and #config=NAME'
        ) from error
    return {str(key): split for key, split in found.items()} if isinstance(found, dict) else {"train": found}


@contextmanager
def offline() -> Iterator[None]:
    """While open, take data sets of the hub from the cache alone: one of another revision would be downloaded."""
    before = _OFFLINE.set(True)
    try:
        yield
    finally:
        _OFFLINE.reset(before)


@contextmanager
def _switched() -> Iterator[None]:
    """Keep the packages off the network where ``offline`` is open."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = (value or _OFFLINE.get() for value in before)
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def caches() -> list[str]:
    """Return the folders where the package keeps what it downloads."""
    from datasets import config
    from huggingface_hub import constants

    return [
        str(path)
        for path in (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    ]


def _built(name: str, config: str | None) -> Any:
    """Return the splits of .parquet files or of images in folders, here or on the hub."""
    import datasets
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.cache.cache import Cache
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.parquet.parquet import Parquet

    is_folder = os.path.isdir(name)
    if is_folder:
        _check_shards(Path(name))
        _check_card(Path(name))
    builder = datasets.load_dataset_builder(os.path.abspath(name) if is_folder else name, config)
    # Other builders read more, pickles in .tar files too.
    if not isinstance(builder, Arrow | Cache | ImageFolder | Parquet):
        raise UserError(
            f"hf:{name} has no .parquet, .arrow or image folders: convert it, or use data=webdataset: or csv:"
        )
    pictures = builder.EXTENSIONS if isinstance(builder, ImageFolder) else None
    for files in (builder.config.data_files or {}).values():
        _check_files(name, [str(file) for file in files], is_folder, pictures)
    builder.download_and_prepare()
    return builder.as_dataset()


def in_cache(name: str, config: str | None) -> bool:
    """Return whether a data set of the hub was prepared here before. Uses no network."""
    from datasets.packaged_modules.cache.cache import Cache

    try:
        with _quiet():
            Cache(
                repo_id=name,
                dataset_name=name.split("/")[-1],
                config_name=config,
                version="auto",
                hash="auto",
            )
    except Exception:  # the package raises anything: there is none, or several and none is named
        return False
    return True


def _check_saved(root: Path) -> None:
    """Raise UserError where a folder of ``save_to_disk`` names files elsewhere. Raises other errors for what it never
    writes."""
    fence = Fence(root, *caches())
    listed = root / "dataset_dict.json"
    splits = read_json(listed)["splits"] if listed.is_file() else []
    for split in map(str, splits):
        if re.search(r"[/\\:]|^\.*$", split):
            raise UserError(f"{listed} has the split {shown(split)}: use the name of a folder beside it")
    for state in (folder / "state.json" for folder in (root, *(root / str(split) for split in splits))):
        for entry in read_json(state)["_data_files"] if state.is_file() else []:
            if not fence.holds(str(state.parent / entry["filename"])):
                file = shown(entry["filename"])
                raise UserError(f"{state} names {file}, which lies outside of {root}: use save_to_disk again")


def _check_card(root: Path) -> None:
    """Raise UserError where the folder asks for files elsewhere: looking for them could send a request to a stranger.
    Raises other errors for invalid YAML."""
    from huggingface_hub import DatasetCard
    from yaml import safe_load

    said: list[Any] = []
    if (root / "README.md").is_file():
        said.append(DatasetCard(read_text(root / "README.md")).data.to_dict())
    if (root / ".huggingface.yaml").is_file():
        said.append(safe_load(read_text(root / ".huggingface.yaml")))
    tables = (table for one in said if isinstance(one, dict) for table in one.get("configs") or [])
    for table in (table for table in tables if isinstance(table, dict)):
        for text in (*_patterns(table.get("data_files")), *_patterns(table.get("data_dir"))):
            if _ELSEWHERE.match(text):
                raise UserError(
                    f"data folder {root} asks for {shown(text)}: name files of its own in README.md"
                )


def _patterns(value: Any) -> Iterator[str]:
    """Yield the files of ``data_files``: a text, or a list of texts and of tables with one or several as ``path``. The
    package refuses all else."""
    for one in value if isinstance(value, list) else [value]:
        path = one.get("path") if isinstance(one, dict) else one
        yield from (text for text in (path if isinstance(path, list) else [path]) if isinstance(text, str))


def _check_files(name: str, files: list[str], is_folder: bool, pictures: list[str] | None) -> None:
    """Raise UserError for a file that lies outside the folder or the hub, or that would be unpacked without limits.

    Args:
        pictures: suffixes of pictures in an image folder, where other files may be archives; None otherwise.
    """
    from datasets.utils.extract import Extractor

    fence = Fence(name, *caches())  # what the hub's client keeps are links into its cache
    for file in files:
        remote = "://" in file
        if remote == is_folder or (is_folder and not fence.holds(file)):
            raise UserError(f"hf:{name} has {shown(file, 1000)}, which lies outside of it: leave it out")
        other = is_folder and pictures is not None and Path(file).suffix.lower() not in pictures
        if other and Extractor.infer_extractor_format(file):
            raise UserError(f"hf:{name} has the archive {shown(file, 1000)}: unpack it, and remove it")


def _check_shards(root: Path) -> None:
    """Raise UserError where a file like ``PART-00001-of-00003.parquet`` is missing: the package takes the rest."""
    found: dict[tuple[str, int, str], set[int]] = {}
    for path in sorted(root.rglob("*-of-*")):
        match = re.fullmatch(r"(.+)-([0-9]{5})-of-([0-9]{5})(?:-\w+)?(\.parquet|\.arrow)", str(path))
        if match:
            found.setdefault((match[1], int(match[3]), match[4]), set()).add(int(match[2]))
    for (start, count, suffix), numbers in found.items():
        absent = sorted({*range(count)} - numbers)
        if absent:
            raise UserError(f"{start}-{absent[0]:05}-of-{count:05}{suffix} is missing: copy it there")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines of the package and of the hub's, as we report errors, and its progress bars except on a
    terminal."""
    import datasets
    from huggingface_hub.utils import logging as hub

    level, below = datasets.logging.get_verbosity(), hub.get_verbosity()
    shows = not datasets.are_progress_bars_disabled() and not sys.stderr.isatty()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)
    if shows:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        hub.set_verbosity(below)
        if shows:
            datasets.enable_progress_bars()
