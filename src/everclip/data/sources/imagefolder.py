"""imagefolder:PATH - your images in class folders: CLASS/*.jpg, or train/CLASS and test/CLASS (or val/CLASS).

A root with bare classes, or with train/ alone, is split: a fifth of each class is the test part, by a hash of the
file's name. `classnames.txt` (one name per line, or folder<TAB>name) and `templates.txt` in the root override the
folder names and the prompt.
"""

from __future__ import annotations

import logging

from everclip.data.formats import folders
from everclip.data.formats.folders import image_files, subfolders
from everclip.data.images import Dataset
from everclip.data.paths import are_domains
from everclip.data.sources import TASKS, Source
from everclip.errors import UserError

log = logging.getLogger("everclip")

LAYOUT = "CLASS/*.jpg, or train/CLASS and test/CLASS"


class ImageFolder(Source):
    """Pictures in folders of their classes."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        root = folders.checked_root(argument, "imagefolder", LAYOUT)
        train, test = folders.parts(root)
        found: list[tuple[str, str, str, bool]] = []
        for folder in subfolders(root / train):
            files = image_files(root, train + folder)
            if not files:
                raise UserError(f"class folder {root / train / folder} has no images: add some, or remove it")
            is_test = folders.split_of(files) if test is None else dict.fromkeys(files, False)
            found += [(key, "", folder, is_test[key]) for key in files]
        for folder in subfolders(root / test) if test else []:
            found += [(key, "", folder, True) for key in image_files(root, f"{test}{folder}")]
        places = [part for part in (train, test) if part is not None]
        least = 1 if kind == folders.ADDITION else 2
        made = folders.dataset(f"imagefolder:{argument}", root, found, [""], places, test is None, least)
        if kind in ("class-incremental", "time", TASKS) and are_domains(root / train):
            log.warning(
                "the folders of %s are taken as classes though each holds folders of the same names:"
                " for DOMAIN/CLASS/*.jpg use data=domainfolder:%s",
                *(root, root),
            )
        return made
