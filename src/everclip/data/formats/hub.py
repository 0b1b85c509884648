"""Open data sets with the package `datasets`: from a folder, or from the Hugging Face hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip.errors import UserError
from everclip.system.reading import strange

if TYPE_CHECKING:
    import datasets

_HINT = "give a folder that save_to_disk wrote, or one of .parquet files"
_MOST_REASON = 240


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
        with _quiet():
            if any((root / file).is_file() for file in ("dataset_dict.json", "state.json")):
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
    builder = datasets.load_dataset_builder(os.path.abspath(name) if is_folder else name, config)
    # Other builders read more, pickles in .tar files too.
    if not isinstance(builder, Arrow | Cache | ImageFolder | Parquet):
        raise UserError(
            f"hf:{name} has no .parquet, .arrow or image folders: convert it, or use data=webdataset: or csv:"
        )
    builder.download_and_prepare()
    return builder.as_dataset()


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
    """Silence the package's own log lines beside our message, and its progress bars but on a terminal."""
    import datasets

    level = datasets.logging.get_verbosity()
    shows = not datasets.are_progress_bars_disabled() and not sys.stderr.isatty()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if shows:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shows:
            datasets.enable_progress_bars()
