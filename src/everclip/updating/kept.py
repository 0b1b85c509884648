"""Store the images that a version keeps, the original files: exemplars, and images that candidates are compared on."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from everclip.data.gathered import Archive
from everclip.data.images import ImageSet
from everclip.errors import UserError
from everclip.inference.learned import LIST
from everclip.models.clip import Clip
from everclip.system import kinds
from everclip.system.reading import read_json

IMAGES = "images.zip"
_COLUMNS = (kinds.text, kinds.COUNT, kinds.COUNT, kinds.truth, kinds.whole(2**63 - 1), kinds.text)
"""Kinds of the columns of images.json."""


def write(exemplars: ImageSet, checks: ImageSet, where: Path) -> str:
    """Write the bytes of exemplars and check images; return a list of them, as JSON. Raises UserError where one has
    gone."""
    rows = []
    with zipfile.ZipFile(where / IMAGES, "w", zipfile.ZIP_STORED) as archive:
        for check, images in ((False, exemplars), (True, checks)):
            columns = (images.rows, images.labels, images.domains, images.ids)
            for row, label, domain, sample in zip(*(c.tolist() for c in columns), strict=True):
                source = str(images.store.keys[row])
                name = f"{len(rows):06d}{Path(source).suffix.lower()}"
                try:
                    content = images.store.read(row)
                except OSError as error:
                    what = error.filename or source
                    raise UserError(
                        f"{what} cannot be read ({error.strerror or error}): put it back, and try again"
                    ) from error
                archive.writestr(zipfile.ZipInfo(name), content)
                rows.append([name, label, domain, check, sample, Path(source).name])
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = '{"columns": ["file", "label", "domain", "check", "id", "name"], "rows": [\n'
    return f"{head}{lines}\n]}}\n"


def read(folder: Path, clip: Clip) -> tuple[ImageSet, ImageSet]:
    """Return exemplars and check images of the version in a folder, as its model ``clip`` takes them."""
    rows = read_json(folder / LIST)["rows"]
    for row in rows:
        if len(row) != len(_COLUMNS) or not all(fits(cell) for fits, cell in zip(_COLUMNS, row, strict=True)):
            raise ValueError(f"a row of {LIST} is none")
    # absolute: it is opened when an image is needed, perhaps from another current folder
    width = None if clip.image_size else clip.blank().shape[1]
    store = Archive((folder / IMAGES).absolute(), [row[0] for row in rows], width)
    places = np.arange(len(rows), dtype=np.int64)
    labels, domains, ids = (np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2, 4))
    check = np.array([row[3] for row in rows], dtype=bool)
    every = ImageSet(store, places, labels, domains, ids)
    return every.select(~check), every.select(check)
